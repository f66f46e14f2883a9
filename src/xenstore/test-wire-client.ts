// For tests: a client that speaks the wire protocol to a connection in memory, and scripts of requests.

import { XSD_SOCKMSG, XS_TYPE } from '../abi/xenstore-wire.ts';
import { bytesToString, stringToBytes } from './bytes.ts';
import { message } from './connection.ts';
import type { Connection, ConnectOptions } from './connection.ts';
import type { Store } from './store.ts';

export type RequestName = keyof typeof XS_TYPE;

export interface Reply {
  readonly type: number;
  readonly requestId: number;
  readonly transactionId: number;
  readonly payload: string;
}

/** Cuts a byte stream into messages; throws if the server sent less than whole ones. */
export function parseMessages(bytes: Uint8Array): Reply[] {
  const replies: Reply[] = [];
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  let position = 0;
  while (position < bytes.length) {
    const length = view.getUint32(position + XSD_SOCKMSG.at.len, true);
    const start = position + XSD_SOCKMSG.sizeBytes;
    if (start + length > bytes.length) throw new Error('the last message is cut off');
    replies.push({
      type: view.getUint32(position + XSD_SOCKMSG.at.type, true),
      requestId: view.getUint32(position + XSD_SOCKMSG.at.req_id, true),
      transactionId: view.getUint32(position + XSD_SOCKMSG.at.tx_id, true),
      payload: bytesToString(bytes.subarray(start, start + length)),
    });
    position = start + length;
  }
  return replies;
}

export class TestClient {
  readonly connection: Connection;
  /** `path token` of every watch event, in order of arrival. */
  events: string[] = [];
  #received: number[] = [];
  #requestId = 0;
  /** Bytes that `send` may still take. */
  room = Infinity;

  constructor(store: Store, options: Omit<ConnectOptions, 'send'>) {
    this.connection = store.connect({
      ...options,
      send: (bytes) => {
        const taken = Math.min(bytes.length, this.room);
        this.room -= taken;
        for (const byte of bytes.subarray(0, taken)) this.#received.push(byte);
        return taken;
      },
    });
  }

  /** Everything received since the last call, cut into messages. */
  take(): Reply[] {
    const replies = parseMessages(Uint8Array.from(this.#received));
    this.#received = [];
    return replies;
  }

  /** Sends one request and gives the payload of its reply, or `E…` for an error. Events are put aside. */
  ask(name: RequestName, payload: string, transactionId = 0): string {
    const requestId = ++this.#requestId;
    const bytes = message(XS_TYPE[name], requestId, transactionId, stringToBytes(payload));
    if (this.connection.receive(bytes) !== bytes.length) throw new Error('the request was not read');
    let answer: string | undefined;
    for (const reply of this.take()) {
      if (reply.type === XS_TYPE.WATCH_EVENT) {
        this.events.push(reply.payload.split('\0').slice(0, 2).join(' '));
        continue;
      }
      if (reply.requestId !== requestId || reply.transactionId !== transactionId || answer !== undefined) {
        throw new Error('this reply answers nothing');
      }
      if (reply.type !== XS_TYPE[name] && reply.type !== XS_TYPE.ERROR) throw new Error('a reply of another type');
      answer = reply.type === XS_TYPE.ERROR ? reply.payload.slice(0, -1) : reply.payload;
    }
    if (answer === undefined) throw new Error('no reply');
    return answer;
  }

  /** Events that came since the last call. */
  takeEvents(): string[] {
    for (const { payload } of this.take()) this.events.push(payload.split('\0').slice(0, 2).join(' '));
    const events = this.events;
    this.events = [];
    return events;
  }

  begin(): number {
    return Number(this.ask('TRANSACTION_START', '\0').slice(0, -1));
  }
}

/** A store with a home for each of the domains, as a toolstack makes it. */
export function homes(store: Store, ...domainIds: number[]): void {
  for (const id of domainIds) {
    store.write(`/local/domain/${id}`, '');
    store.setPerms(`/local/domain/${id}`, [`n${id}`]);
    store.domainIntroduced(id);
  }
}
