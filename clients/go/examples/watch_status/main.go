// Command watch_status follows the statuses of all integrations: watch_status ADDRESS [RESUME_TOKEN].
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"

	"github.com/siem-relay/siem-relay/clients/go/siem"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 && len(os.Args) != 3 {
		log.Fatal("usage: watch_status ADDRESS [RESUME_TOKEN]")
	}
	client, err := siem.Connect(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var options siem.WatchOptions
	if len(os.Args) == 3 {
		options.ResumeToken = os.Args[2]
	}
	watch, err := client.WatchStatus(ctx, options)
	if err != nil {
		log.Fatal(err)
	}
	defer watch.Close()
	// With Go 1.23 or newer: for event, err := range watch.All() { … }
	for {
		event, err := watch.Recv()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			log.Fatal(err)
		}
		switch {
		case event.Snapshot != nil:
			fmt.Println(len(event.Snapshot.Statuses), "integrations")
		case event.Current != nil:
			status := event.Current.GetStatus()
			fmt.Println(event.Current.GetOrganizationId(), siem.StatusOf(status), status.GetMessage())
		case event.Deleted != nil:
			fmt.Println(event.Deleted.GetOrganizationId(), "deleted")
		}
		// A later run that is given this token continues here.
		fmt.Println("resume token", watch.ResumeToken())
	}
}
