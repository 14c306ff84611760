package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/micad/kube"
	"github.com/mica-snapshotter/mica/snapshotter/containerd"
)

const (
	// A container is taken to have waited for its image for podWaited after micad has downloaded it,
	// because the kubelet makes a container when the image is here, and for podPulled after
	// containerd has begun to.
	podWaited, podPulled = time.Minute, 10 * time.Minute
	// eventTime is how long an event may take.
	eventTime = 10 * time.Second
)

// tellPods has Kubernetes note of a pod which of its images were not lazy, if that is configured.
func (d *daemon) tellPods(ctx context.Context) {
	if d.config.Kubernetes.Kubeconfig == "" {
		return
	}
	d.containerd.WatchContainers(ctx, func(c containerd.Container) {
		pod := kube.Pod{
			Namespace: c.Labels["io.kubernetes.pod.namespace"],
			Name:      c.Labels["io.kubernetes.pod.name"],
			UID:       c.Labels["io.kubernetes.pod.uid"],
		}
		container := c.Labels["io.kubernetes.container.name"]
		if pod.Name == "" || container == "" { // the kubelet has not made it, or it is a sandbox
			return
		}
		ctx, cancel := context.WithTimeout(ctx, eventTime)
		defer cancel()
		why, err := d.notLazy(ctx, c)
		if why != nil {
			err = kube.Tell(ctx, d.config.Kubernetes.Kubeconfig, pod, "NotLazy", fmt.Sprintf(
				"container %s waited for image %s: %s", container, why.Ref, why.Text()))
		}
		if err != nil {
			d.log.Warn("Kubernetes is not told of an image that was not lazy", "err", err,
				"pod", pod.Namespace+"/"+pod.Name, "container", container)
		}
	})
}

// notLazy returns why a container that was just made has waited for its image; nil: it has not.
func (d *daemon) notLazy(ctx context.Context, c containerd.Container) (*admin.Fallback, error) {
	lately := slices.DeleteFunc(d.fallbacks(), func(f admin.Fallback) bool {
		past := c.Made.Sub(f.Time)
		return past > podPulled || f.Whole != nil && past > podWaited
	})
	if len(lately) == 0 {
		return nil, nil
	}
	layers, err := d.containerd.LayersOf(ctx, c.Namespace, c.Image)
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(lately, func(f admin.Fallback) bool {
		return layers[digest.Digest(f.Layer)] ||
			slices.ContainsFunc(f.Whole, func(l digest.Digest) bool { return layers[l] })
	})
	if at < 0 {
		return nil, nil
	}
	return &lately[at], nil
}
