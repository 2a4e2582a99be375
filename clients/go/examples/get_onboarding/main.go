// Command get_onboarding writes the documents that a customer applies:
// get_onboarding ADDRESS STREAM_ARN ROLE_NAME EXTERNAL_ID.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/siem-relay/siem-relay/clients/go/siem"
	siemv1 "github.com/siem-relay/siem-relay/clients/go/siem/v1"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 5 {
		log.Fatal("usage: get_onboarding ADDRESS STREAM_ARN ROLE_NAME EXTERNAL_ID")
	}
	client, err := siem.Connect(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	answer, err := client.GetOnboarding(context.Background(), &siemv1.GetOnboardingRequest{
		Stream:     os.Args[2],
		RoleName:   os.Args[3],
		ExternalId: os.Args[4],
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, document := range answer.GetDocuments() {
		// Only into this directory. The documents contain the external ID.
		name := filepath.Base(document.GetFileName())
		if err := os.WriteFile(name, []byte(document.GetText()), 0o600); err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s: %s\n", name, document.GetTitle())
	}
}
