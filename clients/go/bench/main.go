//go:build linux

// Command bench measures the publisher: bench ADDRESS EVENTS, against a server with the integration acme. It prints the
// throughput from the first Send to the last answer, and the growth of the peak of this process's memory.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"strconv"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/siem-relay/siem-relay/clients/go/siem"
	siemv1 "github.com/siem-relay/siem-relay/clients/go/siem/v1"
)

const devices = 100

func device(number int) string { return fmt.Sprintf("00000000-0000-0000-0000-%012x", number) }

// event returns a detection of about 300 bytes.
func event(number int) *siemv1.Event {
	return &siemv1.Event{
		OrganizationId: "acme",
		NetworkId:      device(0),
		DeviceId:       device(number % devices),
		ObservedTime:   timestamppb.Now(),
		Payload: &siemv1.Event_IdsDetection{IdsDetection: &siemv1.IdsDetection{
			SrcIp:       "192.0.2.7",
			SrcPort:     proto.Uint32(uint32(1024 + number%60_000)),
			DestIp:      "198.51.100.80",
			DestPort:    proto.Uint32(443),
			Proto:       "TCP",
			AppProto:    "tls",
			SignatureId: proto.Uint32(uint32(number)),
			Signature:   proto.String(fmt.Sprintf("detection %d", number)),
			Category:    proto.String("Misc activity"),
			Severity:    proto.Uint32(3),
			ContextJson: `{"tls":{"sni":"www.example.com","version":"TLS 1.3"}}`,
		}},
	}
}

// usage returns the peak of the memory in MiB, and the CPU time.
func usage() (float64, time.Duration) {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		log.Fatal(err)
	}
	return float64(used.Maxrss) / 1024, time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

func main() {
	log.SetFlags(0)
	if len(os.Args) != 3 {
		log.Fatal("usage: bench ADDRESS EVENTS")
	}
	total, err := strconv.Atoi(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	client, err := siem.Connect(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	publisher, err := client.Publisher(siem.PublisherOptions{})
	if err != nil {
		log.Fatal(err)
	}
	memory, cpu := usage()
	began := time.Now()
	for number := 0; number < total; number++ {
		if _, err := publisher.Send(ctx, event(number)); err != nil {
			log.Fatal(err)
		}
	}
	if err := publisher.Flush(ctx); err != nil {
		log.Fatal(err)
	}
	seconds := time.Since(began).Seconds()
	memoryAfter, cpuAfter := usage()
	fmt.Printf("%+v\n", publisher.Stats())
	fmt.Printf("%d events in %.1f s, %.0f events/s, %.1f s of CPU, %.0f MiB more memory\n",
		total, seconds, float64(total)/seconds, (cpuAfter - cpu).Seconds(), memoryAfter-memory)
	if err := publisher.Close(ctx); err != nil {
		log.Fatal(err)
	}
	if err := client.Close(); err != nil {
		log.Fatal(err)
	}
}
