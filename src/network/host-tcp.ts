// The host's end of a guest's TCP connection: a node:net socket, with back-pressure both ways.
//
//   guest ──► connection ──► socket.write      what the socket has not sent yet counts against the guest's window
//   guest ◄── connection ◄── socket 'data'     the socket is paused while the guest has not acknowledged enough
//
// An end of stream and a reset on one side become the same on the other.

import { Socket } from 'node:net';
import { CHUNK_BYTES, copyChunk, giveBack } from './chunk-pool.ts';
import type { Scheduler, Timer } from './scheduler.ts';
import { BUFFER_BYTES } from './tcp-connection.ts';
import type { CloseReason, TcpApplication } from './tcp-application.ts';
import type { TcpConnection } from './tcp-connection.ts';

const CONNECT_MILLIS = 30_000;
/** How long a socket may take to send its rest once the guest is done. */
const LINGER_MILLIS = 60_000;
const KEEPALIVE_MILLIS = 7_200_000;
/** What is read goes through here, for all sockets: it is copied on before the next read. */
const readBuffer = new Uint8Array(4 * CHUNK_BYTES);

export interface HostTcpOptions {
  readonly scheduler: Scheduler;
  /** The host could not be reached, for another reason than that it refused. */
  readonly unreachable: (connection: TcpConnection) => void;
}

export class HostTcpEnd implements TcpApplication {
  readonly #options: HostTcpOptions;
  readonly #socket: Socket;
  readonly #resume = () => this.#resumeReading();
  #connection: TcpConnection | undefined;
  #timer: Timer | undefined;
  #corked = false;
  #paused = false;
  #done = false;

  /** Connects to a host for a guest's connection that is opening. */
  static connect(connection: TcpConnection, address: string, port: number, options: HostTcpOptions): HostTcpEnd {
    const callback = (count: number): boolean => {
      end.#onData(readBuffer.subarray(0, count));
      return true; // it pauses the socket itself where it must
    };
    const socket = new Socket({ allowHalfOpen: true, onread: { buffer: readBuffer, callback } });
    const end: HostTcpEnd = new HostTcpEnd(socket, options);
    end.attach(connection);
    end.#timer = options.scheduler.after(CONNECT_MILLIS, () => end.#failed('ETIMEDOUT'));
    socket.once('connect', () => {
      end.#timer?.cancel();
      connection.accept();
    });
    socket.connect({ host: address, port, family: 4, autoSelectFamily: false });
    return end;
  }

  private constructor(socket: Socket, options: HostTcpOptions) {
    this.#socket = socket;
    this.#options = options;
    socket.setNoDelay(true); // whoever wants to collect small writes has done so
    socket.setKeepAlive(true, KEEPALIVE_MILLIS);
    socket.pause();
    socket.on('end', () => this.#connection?.end());
    socket.on('drain', () => this.#connection?.released());
    socket.on('error', (error: NodeJS.ErrnoException) => this.#failed(error.code));
    socket.on('close', () => this.#onClose());
  }

  /** For a socket that a client of the host has opened, paused: `attach` the connection to the guest next. */
  static over(socket: Socket, options: HostTcpOptions): HostTcpEnd {
    const end = new HostTcpEnd(socket, options);
    socket.on('data', (chunk: Buffer) => end.#onData(chunk)).pause();
    return end;
  }

  attach(connection: TcpConnection): void {
    this.#connection = connection;
  }

  connected(): void {
    this.#socket.resume();
  }

  receive(bytes: Uint8Array): void {
    if (!this.#corked) {
      this.#corked = true;
      this.#socket.cork();
    }
    const chunk = copyChunk(bytes);
    this.#socket.write(chunk, () => giveBack(chunk));
  }

  flush(): void {
    if (!this.#corked) return;
    this.#corked = false;
    this.#socket.uncork();
  }

  heldBytes(): number {
    return this.#socket.writableLength;
  }

  ended(): void {
    this.flush();
    this.#socket.end();
  }

  drained(): void {
    if (this.#paused && this.#queuedBytes() < BUFFER_BYTES / 2) this.#resumeReading();
  }

  closed(reason: CloseReason): void {
    this.#done = true;
    this.#timer?.cancel();
    this.#connection?.port.budget.forget(this.#resume);
    if (reason !== 'finished') this.#destroy();
    else if (!this.#socket.destroyed) this.#linger();
  }

  /** What is left goes on counting against the guest's memory. */
  #linger(): void {
    this.flush();
    const { budget } = this.#connection!.port;
    const held = this.#socket.writableLength;
    budget.change(held);
    this.#timer = this.#options.scheduler.after(LINGER_MILLIS, () => this.#socket.destroy());
    this.#socket.once('close', () => {
      this.#timer?.cancel();
      budget.change(-held);
    });
    this.#socket.resume(); // to see its end
  }

  #destroy(): void {
    // Once all that was written is with the kernel and an end comes behind it, there is nothing to cut off; and while that
    // end is under way, Node would neither reset the socket nor close it, now or when the process ends.
    const { connecting, writableEnded, writableLength } = this.#socket;
    if (connecting || writableEnded && writableLength === 0) this.#socket.destroy();
    else this.#socket.resetAndDestroy();
  }

  #queuedBytes(): number {
    return this.#connection?.sender.queue.heldBytes ?? 0;
  }

  /** @param bytes borrowed */
  #onData(bytes: Uint8Array): void {
    const connection = this.#connection;
    if (connection === undefined || this.#done) return;
    for (let at = 0; at < bytes.length; at += CHUNK_BYTES) {
      connection.write(copyChunk(bytes.subarray(at, at + CHUNK_BYTES)));
    }
    const { budget } = connection.port;
    if (this.#queuedBytes() < BUFFER_BYTES && !budget.exhausted) return;
    this.#paused = true;
    this.#socket.pause();
    // With nothing queued of its own, no acknowledgment would wake it.
    if (budget.exhausted) budget.whenFree(this.#resume);
  }

  #resumeReading(): void {
    const connection = this.#connection;
    if (!this.#paused || this.#done || connection === undefined) return;
    if (connection.port.budget.exhausted) {
      connection.port.budget.whenFree(this.#resume);
    } else if (this.#queuedBytes() < BUFFER_BYTES) {
      this.#paused = false;
      this.#socket.resume();
    }
  }

  #failed(code: string | undefined): void {
    const connection = this.#connection;
    if (this.#done || connection === undefined) return;
    this.#finish();
    if (connection.state === 'opening' && code !== 'ECONNREFUSED') {
      this.#options.unreachable(connection);
      connection.forget();
    } else {
      connection.abort();
    }
    this.#socket.destroy();
  }

  #onClose(): void {
    if (this.#done || this.#connection === undefined) return;
    // Both streams ended as they should; the guest still gets its rest.
    if (this.#socket.readableEnded && this.#socket.writableFinished) return;
    this.#finish();
    this.#connection.abort();
  }

  #finish(): void {
    this.#done = true;
    this.#timer?.cancel();
    this.#connection?.port.budget.forget(this.#resume);
  }
}
