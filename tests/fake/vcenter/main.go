// A vCenter for tests: govmomi's simulator, with what it lacks put around it.
//
//	main.go     the process: certificate, ports, the end
//	soap.go     stands before the simulator: sessions, faults on demand, the calls it lacks
//	machine.go  machines and their disks, snapshots with frozen copies
//	tracking.go changed blocks
//	control.go  how a test tells it what to do
//
// It prints one line of JSON when it listens, and ends on SIGTERM, or, with
// -stdin, when its standard input does.
package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vmware/govmomi/simulator"
)

func main() {
	folder := flag.String("folder", "", "where disks, frozen copies and ca.pem go; must exist")
	user := flag.String("user", "administrator@vsphere.local", "who may log in")
	password := flag.String("password", "", "file with the password")
	expired := flag.Bool("expired", false, "the certificate has run out")
	stdin := flag.Bool("stdin", false, "end when standard input ends")
	flag.Parse()
	if err := run(*folder, *user, *password, *expired, *stdin); err != nil {
		fmt.Fprintln(os.Stderr, "vcenter:", err)
		os.Exit(1)
	}
}

func run(folder, user, passwordFile string, expired, stdin bool) error {
	if folder == "" || passwordFile == "" {
		return fmt.Errorf("-folder and -password must be given")
	}
	secret, err := os.ReadFile(passwordFile)
	if err != nil {
		return err
	}
	log.SetOutput(io.Discard) // the simulator's; it says much
	stop := make(chan os.Signal, 2)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)

	model := simulator.VPX()
	model.Machine = 0
	defer model.Remove()
	if err := model.Create(); err != nil {
		return err
	}
	certificate, err := newCertificate(folder, expired)
	if err != nil {
		return err
	}
	password := strings.TrimRight(string(secret), "\n")
	model.Service.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
	model.Service.Listen = &url.URL{Host: "127.0.0.1:0", User: url.UserPassword(user, password)}
	server := model.Service.NewServer()
	defer server.CloseClientConnections()

	fake, err := newFake(folder, user, password, model.Service, server.Config.Handler)
	if err != nil {
		return err
	}
	server.Config.Handler = fake
	control, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer control.Close()
	go func() { _ = http.Serve(control, http.HandlerFunc(fake.serveControl)) }()

	leaf := certificate.Certificate[0]
	ready, _ := json.Marshal(map[string]string{
		"host":    "127.0.0.1",
		"port":    server.URL.Port(),
		"control": "http://" + control.Addr().String() + "/",
		"frozen":  fake.frozen,
		"ca":      filepath.Join(folder, "ca.pem"),
		"sha1":    colons(func() []byte { sum := sha1.Sum(leaf); return sum[:] }()),
		"sha256":  colons(func() []byte { sum := sha256.Sum256(leaf); return sum[:] }()),
	})
	fmt.Println(string(ready))
	if stdin {
		go func() {
			_, _ = io.Copy(io.Discard, bufio.NewReader(os.Stdin))
			stop <- syscall.SIGTERM
		}()
	}
	<-stop
	return nil
}

func colons(sum []byte) string {
	parts := make([]string, len(sum))
	for i, b := range sum {
		parts[i] = fmt.Sprintf("%02X", b)
	}
	return strings.Join(parts, ":")
}

// A CA, which goes to ca.pem, and a server's certificate signed by it.
func newCertificate(folder string, expired bool) (tls.Certificate, error) {
	var none tls.Certificate
	from, until := time.Now().Add(-48*time.Hour), time.Now().Add(24*time.Hour)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: from, NotAfter: until, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return none, err
	}
	caBytes, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return none, err
	}
	if expired {
		until = time.Now().Add(-24 * time.Hour)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "localhost"},
		NotBefore: from, NotAfter: until, DNSNames: []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return none, err
	}
	bytes, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	if err != nil {
		return none, err
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caBytes})
	if err := os.WriteFile(filepath.Join(folder, "ca.pem"), block, 0600); err != nil {
		return none, err
	}
	return tls.Certificate{Certificate: [][]byte{bytes}, PrivateKey: key}, nil
}
