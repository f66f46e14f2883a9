// The gateway's DNS service over TCP: messages with their length before them, several on one connection.

import type { DnsRelay } from './dns-relay.ts';
import type { TcpApplication } from './tcp-application.ts';
import type { TcpConnection } from './tcp-connection.ts';
import { readU16 } from './wire.ts';

/** Questions of one connection that wait for their answers. */
const MAX_WAITING = 16;
/** Answers that the guest has not taken; beyond it no question is looked at. */
const MAX_ANSWER_BYTES = 128 * 1024;

export class DnsTcpSession implements TcpApplication {
  readonly #connection: TcpConnection;
  readonly #relay: DnsRelay;
  #received: Uint8Array = new Uint8Array(0);
  #waiting = 0;
  #serving = false;
  #ended = false;

  constructor(connection: TcpConnection, relay: DnsRelay) {
    this.#connection = connection;
    this.#relay = relay;
  }

  connected(): void {}

  receive(bytes: Uint8Array): void {
    this.#received = this.#received.length === 0 ? bytes.slice() : Buffer.concat([this.#received, bytes]);
    this.#serve();
  }

  flush(): void {}

  /** More than there is: so the window stays a few messages wide. */
  heldBytes(): number {
    return this.#received.length * 4;
  }

  ended(): void {
    this.#ended = true;
    this.#serve();
  }

  drained(): void {
    this.#serve();
  }

  closed(): void {
    this.#received = new Uint8Array(0);
  }

  #serve(): void {
    if (this.#serving) return; // an answer came at once: the loop below goes on
    this.#serving = true;
    let at = 0;
    while (this.#mayServe() && this.#received.length >= at + 2) {
      const end = at + 2 + readU16(this.#received, at);
      if (this.#received.length < end) break;
      this.#waiting++;
      const message = this.#received.subarray(at + 2, end);
      at = end;
      const answered = this.#relay.query(this.#connection.port, message, 'tcp', (answer) => this.#answer(answer));
      if (!answered) this.#waiting--;
    }
    this.#serving = false;
    if (at > 0) {
      this.#received = this.#received.slice(at);
      this.#connection.released();
    }
    if (this.#ended && this.#waiting === 0 && this.#mayServe()) this.#connection.end();
  }

  #mayServe(): boolean {
    return this.#waiting < MAX_WAITING && this.#connection.sender.queue.heldBytes < MAX_ANSWER_BYTES;
  }

  #answer(answer: Uint8Array): void {
    this.#waiting--;
    this.#connection.write(Buffer.concat([Buffer.of(answer.length >> 8, answer.length & 0xff), answer]));
    this.#serve();
  }
}
