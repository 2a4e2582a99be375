package com.meter.siem.client;

/** Threads of this package; none keeps the process alive. */
final class Threads {
  private Threads() {}

  static Thread start(String name, Runnable body) {
    Thread thread = new Thread(body, name);
    thread.setDaemon(true);
    thread.start();
    return thread;
  }
}
