// Command get shows an integration: get ADDRESS ORGANIZATION.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/siem-relay/siem-relay/clients/go/siem"
	siemv1 "github.com/siem-relay/siem-relay/clients/go/siem/v1"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 3 {
		log.Fatal("usage: get ADDRESS ORGANIZATION")
	}
	client, err := siem.Connect(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	answer, err := client.Get(context.Background(), &siemv1.GetRequest{OrganizationId: os.Args[2]})
	var failure *siem.Error
	if errors.As(err, &failure) && failure.Reason == siemv1.ErrorReason_ERROR_REASON_INTEGRATION_NOT_FOUND {
		log.Fatalf("%s has no integration", os.Args[2])
	}
	if err != nil {
		log.Fatal(err)
	}
	integration := answer.GetIntegration()
	fmt.Println(siem.StatusOf(integration.GetStatus()), integration.GetStatus().GetMessage())
	counts := integration.GetCounts()
	fmt.Printf("%d of %d events delivered\n", counts.GetDelivered(), counts.GetAccepted())
}
