// Counts visits in a file of /storage. Go makes system calls without libc, so no hook sees this program: it asks the agent
// itself, over its socket, before it says that a visit is kept.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

func setting(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

var (
	file  = filepath.Join(setting("STORAGE", "/storage"), "visits")
	agent = http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			socket := filepath.Join(setting("STORESHIM_RUN_DIR", "/run/storeshim"), "agent.sock")
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	one sync.Mutex
)

// flush returns when everything in the volume survives the loss of the machine.
func flush(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://agent/v1/flush", nil)
	if err != nil {
		return err
	}
	answer, err := agent.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	said, _ := io.ReadAll(io.LimitReader(answer.Body, 1000))
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("the agent says %s: %s", answer.Status, said)
	}
	return nil
}

func visit(ctx context.Context) (int, error) {
	one.Lock()
	defer one.Unlock()
	visits := 0
	held, err := os.ReadFile(file)
	if err == nil {
		visits, err = strconv.Atoi(strings.TrimSpace(string(held)))
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return 0, err
	}
	visits++
	// A new file in the place of the old one: nobody ever sees half of it.
	if err := os.WriteFile(file+".new", []byte(strconv.Itoa(visits)), 0o644); err != nil {
		return 0, err
	}
	if err := os.Rename(file+".new", file); err != nil {
		return 0, err
	}
	return visits, flush(ctx)
}

func main() {
	handler := func(answer http.ResponseWriter, request *http.Request) {
		// The platform asks whether somebody listens; that is no visit.
		if request.Host == "ping" || request.Host == "containerstarthealthcheck" {
			fmt.Fprintln(answer, "up")
			return
		}
		visits, err := visit(request.Context())
		if err != nil {
			http.Error(answer, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintf(answer, "visit %d\n", visits)
	}
	server := http.Server{Addr: ":" + setting("PORT", "8080"), Handler: http.HandlerFunc(handler)}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	go func() {
		<-ended
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = server.Shutdown(ctx)
	}()
	log.Println("counting visits")
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
}
