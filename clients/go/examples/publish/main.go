// Command publish publishes one event in one call: publish ADDRESS ORGANIZATION.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/siem-relay/siem-relay/clients/go/siem"
	siemv1 "github.com/siem-relay/siem-relay/clients/go/siem/v1"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 3 {
		log.Fatal("usage: publish ADDRESS ORGANIZATION")
	}
	client, err := siem.Connect(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	// Without an EventId the id is derived from network, device, time and content.
	answer, err := client.Publish(context.Background(), &siemv1.PublishRequest{Events: []*siemv1.Event{{
		OrganizationId: os.Args[2],
		NetworkId:      "6f9619ff-8b86-4d01-b42d-00cf4fc964ff",
		DeviceId:       "7d444840-9dc0-41d1-b245-5ffdce74fad2",
		ObservedTime:   timestamppb.Now(),
		Payload: &siemv1.Event_IdsDetection{IdsDetection: &siemv1.IdsDetection{
			SrcIp: "192.0.2.10", DestIp: "198.51.100.7", Signature: proto.String("example"),
		}},
	}}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer.GetAccepted(), "accepted")
	for _, rejection := range answer.GetRejections() {
		fmt.Printf("%s: %s\n", rejection.GetField(), rejection.GetMessage())
	}
}
