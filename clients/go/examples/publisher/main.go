// Command publisher publishes many events over PublishStream: publisher ADDRESS ORGANIZATION COUNT.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"strconv"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/siem-relay/siem-relay/clients/go/siem"
	siemv1 "github.com/siem-relay/siem-relay/clients/go/siem/v1"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 4 {
		log.Fatal("usage: publisher ADDRESS ORGANIZATION COUNT")
	}
	count, err := strconv.Atoi(os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	client, err := siem.Connect(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	publisher, err := client.Publisher(siem.PublisherOptions{})
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	answers := make([]*siem.Answer, 0, count)
	for number := 0; number < count; number++ {
		// Waits while too many are unanswered. The answers may be dropped: Stats counts them.
		answer, err := publisher.Send(ctx, &siemv1.Event{
			OrganizationId: os.Args[2],
			NetworkId:      "6f9619ff-8b86-4d01-b42d-00cf4fc964ff",
			DeviceId:       "7d444840-9dc0-41d1-b245-5ffdce74fad2",
			ObservedTime:   timestamppb.Now(),
			Payload: &siemv1.Event_IdsDetection{IdsDetection: &siemv1.IdsDetection{
				SrcIp: "192.0.2.10", DestIp: "198.51.100.7", Signature: proto.String(fmt.Sprintf("example %d", number)),
			}},
		})
		if err != nil {
			log.Fatal(err)
		}
		answers = append(answers, answer)
	}
	// Names the events without an answer after 30 s.
	if err := publisher.Close(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println(publisher.Stats().Accepted, "accepted")
	for number, answer := range answers {
		result, err := answer.Get(ctx)
		if err != nil {
			log.Fatal(err)
		}
		if result.Rejection != nil {
			fmt.Printf("%d: %s: %s\n", number, result.Rejection.GetField(), result.Rejection.GetMessage())
		}
	}
}
