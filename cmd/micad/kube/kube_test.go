package kube

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// certificate makes a certificate that vouches for itself, and its key, both as PEM.
func certificate(t *testing.T) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	about := &x509.Certificate{SerialNumber: big.NewInt(1),
		Subject:  pkix.Name{CommonName: "system:node:a", Organization: []string{"system:nodes"}},
		NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, about, about, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
}

// TestTell: an event reaches the API by each kind of credentials that a kubeconfig has, and nobody
// else's server.
func TestTell(t *testing.T) {
	cert, key := certificate(t)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(cert)
	var events []map[string]any
	api := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		certified := len(r.TLS.PeerCertificates) > 0
		switch {
		case !certified && r.Header.Get("Authorization") != "Bearer secret":
			http.Error(w, "who are you", http.StatusUnauthorized)
		case r.Method != http.MethodPost || r.URL.Path != "/prefix/api/v1/namespaces/ns/events":
			http.NotFound(w, r)
		default:
			var e map[string]any
			if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
				t.Error(err)
			}
			events = append(events, e)
			w.WriteHeader(http.StatusCreated)
		}
	}))
	api.TLS = &tls.Config{ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool}
	api.StartTLS()
	defer api.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: api.Certificate().Raw})

	dir := t.TempDir()
	answer, err := json.Marshal(map[string]any{"kind": "ExecCredential",
		"status": map[string]string{"clientCertificateData": string(cert), "clientKeyData": string(key)}})
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"cert": cert, "key": key, "ca": ca, "token": []byte("secret\n"), "answer": answer,
		"say": []byte("#!/bin/sh\n[ \"$A\" = b ] || exit 1\necho \"$KUBERNETES_EXEC_INFO\" | " +
			"grep -q '\"ExecCredential\"' && cat \"$1\"\n"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	encoded := base64.StdEncoding.EncodeToString
	own := "certificate-authority: DIR/ca"
	for name, c := range map[string]struct{ cluster, user, want string }{
		"files": {own, "client-certificate: DIR/cert, client-key: DIR/key", ""},
		"data": {"certificate-authority-data: " + encoded(ca),
			"client-certificate-data: " + encoded(cert) + ", client-key-data: " + encoded(key), ""},
		"token":      {own, "token: secret", ""},
		"token file": {own, "token: old, tokenFile: DIR/token", ""},
		"program": {own, "exec: {apiVersion: client.authentication.k8s.io/v1, command: DIR/say, " +
			"args: [DIR/answer], env: [{name: A, value: b}]}", ""},
		"program fails": {own, "exec: {command: DIR/say}", "/say: exit status 1"},
		"refused":       {own, "token: wrong", "401 Unauthorized: who are you"},
		"other server":  {"tls-server-name: example.com", "token: secret", "unknown authority"},
		"no cluster":    {"server: x", "token: secret", "no cluster with an https server"},
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(c.cluster, "server:") {
				c.cluster += ", server: " + api.URL + "/prefix"
			}
			path := filepath.Join(dir, "config")
			text := fmt.Sprintf("kind: Config\ncurrent-context: b\n"+
				"contexts: [{name: a}, {name: b, context: {cluster: c, user: u}}]\n"+
				"clusters: [{name: c, cluster: {%s}}]\nusers: [{name: u, user: {%s}}]\n",
				c.cluster, c.user)
			text = strings.ReplaceAll(text, "DIR", dir)
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			events = nil
			err := Tell(t.Context(), path, Pod{"ns", "pod", "uid"}, "Why",
				strings.Repeat("ü", maxMessage))
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) || events != nil ||
					strings.Contains(err.Error(), "secret") {
					t.Errorf("%v, %v", err, events)
				}
				return
			}
			if err != nil || len(events) != 1 || events[0]["reason"] != "Why" ||
				len(events[0]["message"].(string)) > maxMessage {
				t.Errorf("%v, %v", err, events)
			}
		})
	}
}
