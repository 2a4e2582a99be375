// Command generate_external_id issues an external ID: generate_external_id ADDRESS ORGANIZATION.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/siem-relay/siem-relay/clients/go/siem"
	siemv1 "github.com/siem-relay/siem-relay/clients/go/siem/v1"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 3 {
		log.Fatal("usage: generate_external_id ADDRESS ORGANIZATION")
	}
	client, err := siem.Connect(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	request := &siemv1.GenerateExternalIdRequest{OrganizationId: os.Args[2]}
	answer, err := client.GenerateExternalId(context.Background(), request)
	if err != nil {
		log.Fatal(err)
	}
	// A secret between the customer and the service.
	fmt.Println(answer.GetExternalId())
}
