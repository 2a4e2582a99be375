// Command configure creates or replaces an integration: configure ADDRESS ORGANIZATION STREAM_ARN ROLE_ARN EXTERNAL_ID.
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
	if len(os.Args) != 6 {
		log.Fatal("usage: configure ADDRESS ORGANIZATION STREAM_ARN ROLE_ARN EXTERNAL_ID")
	}
	client, err := siem.Connect(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	answer, err := client.Configure(context.Background(), &siemv1.ConfigureRequest{
		OrganizationId:   os.Args[2],
		KinesisStreamArn: os.Args[3],
		RoleArn:          os.Args[4],
		ExternalId:       os.Args[5],
	})
	if failure := (*siem.Error)(nil); errors.As(err, &failure) {
		for _, violation := range failure.Violations {
			log.Printf("%s: %s", violation.Field, violation.Description)
		}
	}
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer.GetIntegration().GetIntegrationId(), "etag", answer.GetIntegration().GetEtag())
	for _, warning := range answer.GetWarnings() {
		fmt.Println("warning:", warning)
	}
}
