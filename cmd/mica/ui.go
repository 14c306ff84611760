package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"time"

	"github.com/spf13/cobra"

	"github.com/mica-snapshotter/mica/cmd/admin"
	"github.com/mica-snapshotter/mica/cmd/mica/reach"
	"github.com/mica-snapshotter/mica/cmd/page"
)

func uiCommand() *cobra.Command {
	var address, listen string
	var open bool
	cmd := &cobra.Command{
		Use:   "ui",
		Short: "Show micad's page in a browser",
		Long: "Show micad's page in a browser: images, what the latest starts waited for, and what " +
			"went wrong.\n\nThe command hands micad's page on from its socket until it is " +
			"interrupted, at an address of this\nmachine that nobody can guess. From another " +
			"machine, forward the port: ssh -L PORT:127.0.0.1:PORT NODE.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			micad := reach.Daemon(address)
			if err := micad.Get(ctx, admin.PathInfo, &admin.Info{}); err != nil {
				return err
			}
			l, err := net.Listen("tcp", listen)
			if err != nil {
				return err
			}
			secret := "/" + rand.Text() + "/"
			at := "http://" + l.Addr().String() + secret
			if _, err := fmt.Fprintln(cmd.OutOrStdout(), at); err != nil {
				return errors.Join(err, l.Close())
			}
			if open {
				if err := exec.CommandContext(ctx, "xdg-open", at).Start(); err != nil {
					fmt.Fprintln(cmd.ErrOrStderr(), "mica: open the address by hand:", err)
				}
			}
			return serveUI(ctx, l, secret, micad)
		},
	}
	reach.AddAddress(cmd, &address)
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:0", "address to serve the page at")
	cmd.Flags().BoolVar(&open, "open", false, "open a browser, by xdg-open")
	return cmd
}

// serveUI hands the page on below the path secret, until ctx ends.
func serveUI(ctx context.Context, l net.Listener, secret string, micad *admin.Client) error {
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: "micad"})
		},
		Transport: micad.Transport(),
	}
	shown := http.StripPrefix(secret[:len(secret)-1], proxy)
	mux := http.NewServeMux()
	for _, path := range page.Paths {
		mux.Handle("GET "+secret+path, shown)
	}
	host, _, _ := net.SplitHostPort(l.Addr().String())
	server := &http.Server{
		Handler:           page.Guard(mux, host),
		ReadHeaderTimeout: 10 * time.Second,
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
