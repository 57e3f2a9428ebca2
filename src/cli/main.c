/* sendense: the one binary. */
int main(void)
{
	return 2;
}
