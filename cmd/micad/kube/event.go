// Package kube writes events of Kubernetes, in the way that a kubeconfig says. The file is read for
// each event, so that whoever renews what it names need tell nobody; events are few. Functions may
// run in parallel.
package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

const (
	component = "micad"
	// maxMessage is how long the message of an event may be, bytes.
	maxMessage = 1024
	// maxAnswer bounds what an error tells of an answer, bytes.
	maxAnswer = 500
)

// Pod is a pod as the labels of its containers name it.
type Pod struct{ Namespace, Name, UID string }

// Tell writes an event of type Normal about a pod. The event is of the core group, in which the
// role system:node lets a kubelet create events.
// https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/
func Tell(ctx context.Context, kubeconfig string, pod Pod, reason, message string) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	type object map[string]any
	now := time.Now().UTC().Format(time.RFC3339)
	body, err := json.Marshal(object{
		"apiVersion": "v1", "kind": "Event",
		"metadata": object{"namespace": pod.Namespace, "generateName": component + "-"},
		"involvedObject": object{"apiVersion": "v1", "kind": "Pod", "namespace": pod.Namespace,
			"name": pod.Name, "uid": pod.UID},
		"type": "Normal", "reason": reason,
		"message": strings.ToValidUTF8(message[:min(len(message), maxMessage)], ""),
		"source":  object{"component": component, "host": host},
		"count":   1, "firstTimestamp": now, "lastTimestamp": now,
	})
	if err != nil {
		return err
	}
	c, err := load(kubeconfig)
	if err == nil {
		err = c.post(ctx, "api/v1/namespaces/"+pod.Namespace+"/events", body)
	}
	if err != nil {
		return fmt.Errorf("write an event by %s: %w", kubeconfig, err)
	}
	return nil
}

// post makes an object, whose kind has this path.
func (c *config) post(ctx context.Context, path string, body []byte) error {
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	at, err := url.JoinPath(c.cluster.Server, path)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, at, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if c.user.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.user.Token)
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		answer, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		return fmt.Errorf("%s: %s", resp.Status, answer)
	}
	return nil
}
