// Command delete removes an integration: delete ADDRESS ORGANIZATION.
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
		log.Fatal("usage: delete ADDRESS ORGANIZATION")
	}
	client, err := siem.Connect(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	// With AllowMissing the call may be repeated after a lost answer.
	request := &siemv1.DeleteRequest{OrganizationId: os.Args[2], AllowMissing: true}
	answer, err := client.Delete(context.Background(), request)
	if err != nil {
		log.Fatal(err)
	}
	counts := answer.GetCounts()
	fmt.Printf("%d events were delivered, %d discarded\n", counts.GetDelivered(), counts.GetDiscarded())
}
