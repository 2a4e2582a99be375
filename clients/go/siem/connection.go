package siem

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/stats"
)

// Version of this package.
const Version = "0.1.0"

const maxAnswerBytes = 16 << 20

// TLS has the authorities to trust and the certificate of the client. Each may be given as PEM, or as a file, which is
// read again for each connection: what replaces it is used without a restart. If it cannot be used, the last good one
// remains.
type TLS struct {
	// CA has the certificates of the authorities to trust. Without it, and without CAFile, those of the system are.
	CA []byte
	// CAFile is a file with CA.
	CAFile string
	// Certificate is the certificate chain of this client, for a server that asks for one.
	Certificate []byte
	// CertificateFile is a file with Certificate.
	CertificateFile string
	// Key is the private key of Certificate.
	Key []byte
	// KeyFile is a file with Key.
	KeyFile string
	// ServerName is the name to expect in the server's certificate, if it is not the host of the address.
	ServerName string
}

// String returns a text without the key, so that none is printed.
func (t TLS) String() string { return "TLS{" + t.ServerName + " …}" }

// GoString is String.
func (t TLS) GoString() string { return t.String() }

func readPEM(name string, content []byte, file string) ([]byte, error) {
	if file != "" {
		if content != nil {
			return nil, configurationError("TLS.%s and TLS.%sFile are both given; remove one", name, name)
		}
		var err error
		if content, err = os.ReadFile(file); err != nil {
			return nil, configurationError("TLS.%sFile: %v", name, err)
		}
	}
	if content != nil && !strings.Contains(string(content), "-----BEGIN") {
		return nil, configurationError("TLS.%s: this is no PEM; convert DER with openssl", name)
	}
	return content, nil
}

func (t TLS) load() (*tls.Config, error) {
	ca, err := readPEM("CA", t.CA, t.CAFile)
	if err != nil {
		return nil, err
	}
	certificate, err := readPEM("Certificate", t.Certificate, t.CertificateFile)
	if err != nil {
		return nil, err
	}
	key, err := readPEM("Key", t.Key, t.KeyFile)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{ServerName: t.ServerName, MinVersion: tls.VersionTLS12}
	if ca != nil {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(ca) {
			return nil, configurationError("TLS.CA has no certificate that can be read")
		}
	}
	if (certificate == nil) != (key == nil) {
		return nil, configurationError("TLS: Certificate and Key must be given together")
	}
	if certificate != nil {
		pair, err := tls.X509KeyPair(certificate, key)
		if err != nil {
			return nil, configurationError("TLS.Certificate and TLS.Key: %v", err)
		}
		if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return nil, configurationError("TLS.Certificate: %v", err)
		}
		// Also to a server that does not name the authority: it then says what is wrong.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// tlsCredentials load the certificates for each connection.
type tlsCredentials struct {
	options TLS
	mu      sync.Mutex
	last    *tls.Config
}

func (c *tlsCredentials) config() credentials.TransportCredentials {
	c.mu.Lock()
	defer c.mu.Unlock()
	if loaded, err := c.options.load(); err == nil && !isExpired(loaded) {
		c.last = loaded
	}
	return credentials.NewTLS(c.last)
}

// isExpired returns whether the client's certificate is. The first one is sent all the same, as the server may have
// another clock.
func isExpired(config *tls.Config) bool {
	return len(config.Certificates) > 0 && time.Now().After(config.Certificates[0].Leaf.NotAfter)
}

func (c *tlsCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c.config().ClientHandshake(ctx, authority, raw)
}

func (c *tlsCredentials) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these are credentials of a client")
}

func (c *tlsCredentials) Info() credentials.ProtocolInfo {
	return credentials.NewTLS(&tls.Config{ServerName: c.options.ServerName}).Info()
}

// Clone shares the state, which nothing changes from outside.
func (c *tlsCredentials) Clone() credentials.TransportCredentials { return c }

func (c *tlsCredentials) OverrideServerName(string) error {
	return errors.New("set TLS.ServerName")
}

func isLoopback(host string) bool {
	address := net.ParseIP(host)
	return host == "localhost" || (address != nil && address.IsLoopback())
}

type endpoint struct {
	host, port string
	plaintext  bool
}

// parseAddress checks an address and whether a token may be sent there.
func parseAddress(address string, hasTLS, hasToken bool) (endpoint, error) {
	var none endpoint
	scheme, rest, found := strings.Cut(address, "://")
	if !found {
		scheme, rest = "http", address
		if hasTLS {
			scheme = "https"
		}
	}
	if scheme != "http" && scheme != "https" {
		return none, configurationError("address %q: the scheme is %q; use http or https", address, scheme)
	}
	parts, err := url.Parse("//" + rest)
	if err != nil || parts.Hostname() == "" || strings.TrimRight(parts.Path, "/") != "" || parts.User != nil ||
		parts.RawQuery != "" || parts.Fragment != "" {
		return none, configurationError("address %q is not of the form http://HOST:PORT or https://HOST:PORT", address)
	}
	result := endpoint{parts.Hostname(), parts.Port(), scheme == "http"}
	if result.port == "" {
		result.port = "443"
		if result.plaintext {
			result.port = "80"
		}
	}
	if number, err := strconv.ParseUint(result.port, 10, 16); err != nil || number == 0 {
		return none, configurationError("address %q: %s is no port from 1 to 65535", address, result.port)
	}
	if result.plaintext && hasTLS {
		return none, configurationError("address %q is plaintext, but TLS is given; use https", address)
	}
	if result.plaintext && hasToken && !isLoopback(result.host) {
		return none, configurationError(
			"address %q: a token is not sent in clear to another machine; use https, or loopback", address)
	}
	return result, nil
}

// dial returns a connection, which is opened at its first use.
func (e endpoint) dial(options *TLS, compress bool) (*grpc.ClientConn, error) {
	call := []grpc.CallOption{grpc.MaxCallRecvMsgSize(maxAnswerBytes)}
	if compress {
		call = append(call, grpc.UseCompressor(gzip.Name))
	}
	dial := []grpc.DialOption{
		grpc.WithUserAgent("siem-client-go/" + Version),
		grpc.WithDefaultCallOptions(call...),
		// One layer of retries, which is this package.
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		// A connection whose peer vanished ends after at most 40 s. Pings are sent only while a call is open.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		// The time to connect, and the waits after failures to connect.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second,
			},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithStatsHandler(sentMarker{}),
	}
	if isLoopback(e.host) {
		dial = append(dial, grpc.WithNoProxy())
	}
	if e.plaintext {
		dial = append(dial, grpc.WithTransportCredentials(insecure.NewCredentials()))
	} else {
		if options == nil {
			options = &TLS{}
		}
		// Errors are seen early.
		loaded, err := options.load()
		if err != nil {
			return nil, err
		}
		dial = append(dial, grpc.WithTransportCredentials(&tlsCredentials{options: *options, last: loaded}))
	}
	target := "dns:///" + net.JoinHostPort(e.host, e.port)
	connection, err := grpc.NewClient(target, dial...)
	if err != nil {
		return nil, configurationError("address %q: %v", target, err)
	}
	return connection, nil
}

type sentKey struct{}

// sentMarker notes in the context of a call that it was given to a connection, so that a server may have seen it.
type sentMarker struct{}

func (sentMarker) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (sentMarker) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (sentMarker) HandleConn(context.Context, stats.ConnStats)                       {}

func (sentMarker) HandleRPC(ctx context.Context, event stats.RPCStats) {
	if _, ok := event.(*stats.OutHeader); ok {
		if sent, ok := ctx.Value(sentKey{}).(*atomic.Bool); ok {
			sent.Store(true)
		}
	}
}
