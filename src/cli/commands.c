/* The list of commands, in the order of --help. */
#include "commands.h"

const struct command *const cli_commands[] = {
	&command_backup,
	&command_restore,
	&command_replicate,
	&command_ls,
	&command_verify,
	&command_prune,
	&command_protect,
	&command_serve,
	&command_status,
	&command_export,
	&command_copy,
	&command_measure,
	&command_repo_init,
	&command_repo_info,
	&command_repo_check,
	&command_repo_reindex,
	&command_hub_init,
	&command_hub_run,
	&command_hub_check_config,
	&command_hub_export,
	&command_hub_import,
	&command_node_init,
	&command_node_run,
	&command_node_check_config,
	&command_node_enrol,
	&command_tunnel_run,
	&command_tunnel_sshd_config,
	&command_vmware_ls,
	&command_vmware_info,
	&command_vmware_cbt,
	&command_vmware_debts,
	&command_vmware_collect,
	&command_doctor,
	&command_version,
	&command_completion,
};
const size_t cli_nr_commands = ARRAY_LENGTH(cli_commands);

const struct command *const cli_hidden_commands[] = {
	&command_nbd_service,
};
const size_t cli_nr_hidden_commands = ARRAY_LENGTH(cli_hidden_commands);
