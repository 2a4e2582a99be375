// Command list lists all integrations, page by page: list ADDRESS.
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
	if len(os.Args) != 2 {
		log.Fatal("usage: list ADDRESS")
	}
	client, err := siem.Connect(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	request := &siemv1.ListRequest{PageSize: 100}
	for {
		page, err := client.List(context.Background(), request)
		if err != nil {
			log.Fatal(err)
		}
		for _, integration := range page.GetIntegrations() {
			fmt.Println(integration.GetOrganizationId(), siem.StatusOf(integration.GetStatus()))
		}
		if page.GetNextPageToken() == "" {
			return
		}
		request.PageToken = page.GetNextPageToken()
	}
}
