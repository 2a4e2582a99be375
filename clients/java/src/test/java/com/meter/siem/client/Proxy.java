package com.meter.siem.client;

import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.util.List;
import java.util.concurrent.CopyOnWriteArrayList;

/** A proxy that forwards bytes until it is silent. */
final class Proxy implements AutoCloseable {
  private final ServerSocket listener;
  private final List<Socket> sockets = new CopyOnWriteArrayList<>();
  private volatile boolean silent;

  /**
   * @param listen its port; 0 for a free one
   */
  Proxy(int listen, int server) throws IOException {
    listener = new ServerSocket(listen, 50, InetAddress.getByName("127.0.0.1"));
    Threads.start(
        "proxy",
        () -> {
          try {
            while (true) {
              Socket near = listener.accept();
              sockets.add(near);
              if (!silent) {
                Socket far = new Socket("127.0.0.1", server);
                sockets.add(far);
                Threads.start("proxy", () -> copy(near, far));
                Threads.start("proxy", () -> copy(far, near));
              }
            }
          } catch (IOException closed) {
            // Over.
          }
        });
  }

  int port() {
    return listener.getLocalPort();
  }

  /** Accepts connections from now on, but forwards nothing. */
  void silence(boolean silent) {
    this.silent = silent;
  }

  /** Resets all connections. */
  void cut() {
    for (Socket socket : sockets) {
      try {
        socket.setSoLinger(true, 0);
        socket.close();
      } catch (IOException closed) {
        // Over.
      }
    }
    sockets.clear();
  }

  private void copy(Socket from, Socket to) {
    byte[] buffer = new byte[65536];
    try {
      InputStream input = from.getInputStream();
      OutputStream output = to.getOutputStream();
      int read;
      while ((read = input.read(buffer)) >= 0) {
        if (!silent) {
          output.write(buffer, 0, read);
        }
      }
    } catch (IOException closed) {
      // Over.
    }
  }

  @Override
  public void close() throws IOException {
    listener.close();
    cut();
  }
}
