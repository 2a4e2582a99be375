package siem_test

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/siem-relay/siem-relay/clients/go/siem"
	siemv1 "github.com/siem-relay/siem-relay/clients/go/siem/v1"
)

// sandbox is a real server with the organization acme and a stand-in for AWS.
type sandbox struct {
	address, stream, role, externalID string
	// Directory of the credentials, with --secure.
	credentials string
}

var (
	addressLine     = regexp.MustCompile(`^siem-relay +(https?://\S+)`)
	configureLine   = regexp.MustCompile(`"kinesis_stream_arn":"([^"]+)","role_arn":"([^"]+)","external_id":"([^"]+)"`)
	credentialsLine = regexp.MustCompile(`-cacert (\S+)/ca\.pem`)
)

func startSandbox(t *testing.T, flags ...string) sandbox {
	t.Helper()
	binary := os.Getenv("SIEM_RELAY_BIN")
	if binary == "" {
		t.Skip("SIEM_RELAY_BIN names no server")
	}
	command := exec.Command(binary, append([]string{"sandbox", "--port", "0"}, flags...)...)
	output, err := command.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	found, read := make(chan sandbox, 1), make(chan struct{})
	go func() {
		defer close(read)
		var seen sandbox
		lines := bufio.NewScanner(output)
		for lines.Scan() {
			line := lines.Text()
			if match := addressLine.FindStringSubmatch(line); match != nil {
				seen.address = match[1]
			}
			if match := credentialsLine.FindStringSubmatch(line); match != nil {
				seen.credentials = match[1]
			}
			// The first one has a wrong external ID, the second the right one.
			if match := configureLine.FindStringSubmatch(line); match != nil {
				seen.stream, seen.role, seen.externalID = match[1], match[2], match[3]
			}
			// Delivery works.
			if strings.HasSuffix(line, "acme ACTIVE") {
				found <- seen
			}
		}
	}()
	t.Cleanup(func() {
		if err := command.Process.Signal(syscall.SIGINT); err != nil {
			t.Error(err)
		}
		<-read
		if err := command.Wait(); err != nil {
			t.Error("the sandbox ended with", err)
		}
	})
	select {
	case seen := <-found:
		return seen
	case <-time.After(60 * time.Second):
		t.Fatal("the sandbox is not ready after 60 s")
		return sandbox{}
	}
}

// programs returns the directory of the built examples: those of SIEM_EXAMPLES, or new ones.
func programs(t *testing.T) string {
	t.Helper()
	directory := os.Getenv("SIEM_EXAMPLES")
	if directory == "" {
		directory = t.TempDir()
		if output, err := exec.Command("go", "build", "-o", directory+"/", "../examples/...").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, output)
		}
	}
	return directory
}

func TestExamples(t *testing.T) {
	server := startSandbox(t)
	directory, work := programs(t), t.TempDir()
	var ran []string
	example := func(name string, wanted string, arguments ...string) {
		t.Helper()
		ran = append(ran, name)
		command := exec.Command(filepath.Join(directory, name), append([]string{server.address}, arguments...)...)
		command.Dir = work
		output, err := command.CombinedOutput()
		if err != nil || !strings.Contains(string(output), wanted) {
			t.Fatalf("%s: %v, without %q:\n%s", name, err, wanted, output)
		}
	}
	example("generate_external_id", "\n", "other")
	example("get_onboarding", "siem-relay.tf: ", server.stream, "siem-relay", server.externalID)
	if _, err := os.Stat(filepath.Join(work, "siem-relay.tf")); err != nil {
		t.Fatal(err)
	}
	example("configure", " etag ", "acme", server.stream, server.role, server.externalID)
	example("send_test", "CHECK_RESULT_PASSED", "acme")
	example("publish", "1 accepted", "acme")
	example("publisher", "250 accepted", "acme", "250")
	example("get", "events delivered", "acme")
	example("list", "acme STATUS_ACTIVE")
	example("list_audit_entries", "AUDIT_ACTION_SEND_TEST", "acme")

	watch := exec.Command(filepath.Join(directory, "watch_status"), server.address)
	ran = append(ran, "watch_status")
	output, err := watch.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(output)
	var seen []string
	until := func(wanted string) {
		t.Helper()
		for lines.Scan() {
			seen = append(seen, lines.Text())
			if lines.Text() == wanted {
				return
			}
		}
		t.Fatalf("the watch ended without %q: %q", wanted, seen)
	}
	until("1 integrations")
	example("delete", "discarded", "acme")
	until("acme deleted")
	if err := watch.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() {
	}
	if err := watch.Wait(); err != nil {
		t.Fatal(err)
	}

	entries, err := os.ReadDir("../examples")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if !slices.Contains(ran, entry.Name()) {
			t.Errorf("the example %s does not run here", entry.Name())
		}
	}
	refused, err := exec.Command(filepath.Join(directory, "configure"), server.address, "acme", "a", "b", "").CombinedOutput()
	if err == nil || !strings.Contains(string(refused), "kinesis_stream_arn: ") || !strings.Contains(string(refused), "role_arn: ") {
		t.Fatalf("%v\n%s", err, refused)
	}
}

// The program of the README, which clients/go/check has built in a module of its own.
func TestTheProgramOfTheReadme(t *testing.T) {
	if os.Getenv("SIEM_EXAMPLES") == "" {
		t.Skip("clients/go/check runs it")
	}
	server := startSandbox(t)
	output, err := exec.Command(filepath.Join(os.Getenv("SIEM_EXAMPLES"), "readme"), server.address).CombinedOutput()
	if err != nil || !strings.HasPrefix(string(output), "STATUS_ACTIVE") {
		t.Fatalf("%v\n%s", err, output)
	}
}

func TestTLSWithATokenAndWithACertificate(t *testing.T) {
	server := startSandbox(t, "--secure")
	file := func(name string) string { return filepath.Join(server.credentials, name) }
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	authority := siem.TLS{CAFile: file("ca.pem")}
	certificate := siem.TLS{CAFile: file("ca.pem"), CertificateFile: file("client.pem"), KeyFile: file("client.key")}
	for name, options := range map[string][]siem.Option{
		"token":       {siem.WithTLS(authority), siem.WithTokenFile(file("admin.token"))},
		"certificate": {siem.WithTLS(certificate)},
	} {
		client, err := siem.Connect(server.address, options...)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := client.Get(ctx, &siemv1.GetRequest{OrganizationId: "acme"})
		if err != nil || siem.StatusOf(answer.GetIntegration().GetStatus()) != siemv1.Status_STATUS_ACTIVE {
			t.Fatal(name, answer, err)
		}
		watch, err := client.WatchStatus(ctx, siem.WatchOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if event, err := watch.Recv(); err != nil || event.Snapshot.Statuses["acme"] == nil {
			t.Fatal(name, event, err)
		}
		if err := client.Close(); err != nil {
			t.Fatal(err)
		}
	}
	client, err := siem.Connect(server.address, siem.WithTLS(authority), siem.WithToken("wrong"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	_, err = client.Get(ctx, &siemv1.GetRequest{OrganizationId: "acme"})
	var failure *siem.Error
	if !errors.As(err, &failure) || failure.Code != codes.Unauthenticated ||
		failure.Reason != siemv1.ErrorReason_ERROR_REASON_UNAUTHENTICATED {
		t.Fatal(err)
	}
}
