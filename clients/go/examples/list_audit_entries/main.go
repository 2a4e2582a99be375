// Command list_audit_entries shows the newest entries of the audit: list_audit_entries ADDRESS [ORGANIZATION].
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/siem-relay/siem-relay/clients/go/siem"
	siemv1 "github.com/siem-relay/siem-relay/clients/go/siem/v1"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 && len(os.Args) != 3 {
		log.Fatal("usage: list_audit_entries ADDRESS [ORGANIZATION]")
	}
	client, err := siem.Connect(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	request := &siemv1.ListAuditEntriesRequest{PageSize: 20}
	if len(os.Args) == 3 {
		request.OrganizationId = os.Args[2]
	}
	page, err := client.ListAuditEntries(context.Background(), request)
	if err != nil {
		log.Fatal(err)
	}
	for _, entry := range page.GetEntries() {
		at := entry.GetTime().AsTime().Format(time.RFC3339)
		fmt.Println(at, entry.GetAction(), entry.GetOrganizationId(), entry.GetPrincipal(), entry.GetCode())
	}
}
