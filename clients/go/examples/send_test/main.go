// Command send_test writes a test event: send_test ADDRESS ORGANIZATION.
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
		log.Fatal("usage: send_test ADDRESS ORGANIZATION")
	}
	client, err := siem.Connect(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	verdict, err := client.SendTest(context.Background(), &siemv1.SendTestRequest{OrganizationId: os.Args[2]})
	if err != nil {
		log.Fatal(err)
	}
	for _, check := range verdict.GetChecks() {
		fmt.Println(check.GetName(), check.GetResult(), check.GetRemedy())
	}
	if !verdict.GetDelivered() {
		log.Fatal(verdict.GetMessage())
	}
}
