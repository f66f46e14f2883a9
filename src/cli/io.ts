// What a command sees of the process that it runs in: the real one by cli/process.ts, streams of its own in a test.

import type { Readable, Writable } from 'node:stream';
import { orAborted } from '../base/abort.ts';

export interface TerminalInput {
  isTTY?: boolean;
  setRawMode?(mode: boolean): unknown;
}

export interface TerminalOutput {
  isTTY?: boolean;
  rows?: number;
  columns?: number;
}

export interface Io {
  readonly stdin: Readable & TerminalInput;
  readonly stdout: Writable & TerminalOutput;
  readonly stderr: Writable & TerminalOutput;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Aborted, with an Interruption, when the person or a program wants the command to end. */
  readonly signal: AbortSignal;
  /** Registers what has to be undone however the process ends; gives a function that undoes it and forgets it. */
  onExit(undo: () => void): () => void;
}

/** Why a command was ended before its time, and with what exit status. */
export class Interruption extends Error {
  override name = 'Interruption';
  readonly status: number;

  constructor(message: string, status: number) {
    super(message);
    this.status = status;
  }
}

/** Zazen's own words, which go to standard error; `text` without newline. */
export function say(io: Io, text: string): void {
  io.stderr.write(`zazen: ${text}\n`);
}

/** Copies all of `source` to `sink`, which stays open, at the pace of the sink. `look` sees each chunk first. */
export async function pump(
  source: Readable,
  sink: Writable | undefined,
  signal: AbortSignal,
  look?: (chunk: Buffer) => void,
): Promise<void> {
  const copy = async (): Promise<void> => {
    for await (const chunk of source.iterator({ destroyOnReturn: false })) {
      look?.(chunk);
      if (signal.aborted) return;
      if (sink !== undefined && !sink.write(chunk)) await drained(sink);
    }
  };
  const copied = copy().catch((error: NodeJS.ErrnoException) => {
    // A console that is destroyed under a reader has ended, nothing more.
    if (error.code !== 'ERR_STREAM_PREMATURE_CLOSE' && error.code !== 'ERR_STREAM_DESTROYED') throw error;
  });
  await orAborted(copied, signal);
}

function drained(sink: Writable): Promise<void> {
  if (sink.destroyed || !sink.writableNeedDrain) return Promise.resolve();
  return new Promise((resolve) => {
    const settle = (): void => {
      for (const event of ['drain', 'close', 'error']) sink.off(event, settle);
      resolve();
    };
    for (const event of ['drain', 'close', 'error']) sink.on(event, settle);
  });
}
