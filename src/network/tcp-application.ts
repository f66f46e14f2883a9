// What is at the host's end of a guest's TCP connection: a host socket, or a service of the gateway's own.

/** `finished`: both ends have closed. `reset`: by the guest. `refused`: a reset in answer to our SYN. */
export type CloseReason = 'finished' | 'reset' | 'refused' | 'timeout' | 'aborted';

/** The host's end. Calls may come back into the connection. */
export interface TcpApplication {
  /** The guest has completed the handshake. */
  connected(): void;
  /** Bytes in order, borrowed. */
  receive(bytes: Uint8Array): void;
  /** After one or more `receive`, at the end of a batch. */
  flush(): void;
  /** What the application still holds of the bytes received. */
  heldBytes(): number;
  /** No more bytes will come. */
  ended(): void;
  /** Bytes written have been acknowledged. */
  drained(): void;
  /** The connection is gone; nothing follows. Not called after `abort`. */
  closed(reason: CloseReason): void;
}

/** The application of a connection that has none yet, or has lost its own. */
export const NOBODY: TcpApplication = {
  connected() {},
  receive() {},
  flush() {},
  heldBytes: () => 0,
  ended() {},
  drained() {},
  closed() {},
};
