// The person's terminal while a guest has it, and the input on its way to the guest.

import type { Readable, Writable } from 'node:stream';
import type { TerminalSpec } from '../host/types.ts';
import type { Io } from './io.ts';

/** Ctrl-], as in `xl console`: the one key that is not the guest's. */
const ESCAPE_KEY = 0x1d;
/** A guest that was cut off may have left colours and a hidden cursor behind. */
const SANE_SCREEN = '\r\n\x1b[0m\x1b[?25h';

/** Hands every key to the guest, Ctrl-C included, until the function that it gives is called or the process ends. */
export function rawTerminal(io: Io, signal: AbortSignal): () => void {
  io.stdin.setRawMode?.(true);
  return io.onExit(() => {
    try {
      io.stdin.setRawMode?.(false);
    } catch {
      // The terminal has gone; so has its mode.
    }
    if (signal.aborted && io.stderr.isTTY) io.stderr.write(SANE_SCREEN);
  });
}

/** The person's terminal, for the guest's programs. */
export function describeTerminal(io: Io): TerminalSpec | undefined {
  const { rows, columns } = io.stdout;
  if (!io.stdout.isTTY || !rows || !columns) return undefined;
  const type = io.env['TERM'];
  return type !== undefined && /^[\w.+-]{1,64}$/.test(type) ? { rows, columns, type } : { rows, columns };
}

/**
 * Sends input to `sink` at its pace, and ends it where the input ends; gives a function that stops that. With `leave`
 * the input is a person's: Ctrl-] calls it, and what follows is dropped.
 */
export function forwardInput(stdin: Readable, sink: Writable, leave?: () => void): () => void {
  const resume = (): void => void stdin.resume();
  const take = (chunk: Buffer): void => {
    const key = leave === undefined ? -1 : chunk.indexOf(ESCAPE_KEY);
    const bytes = key < 0 ? chunk : chunk.subarray(0, key);
    if (bytes.length > 0 && sink.writable && !sink.write(bytes)) {
      stdin.pause();
      sink.once('drain', resume);
    }
    if (key >= 0) leave?.();
  };
  const end = (): void => {
    // A person's terminal that is gone leaves the guest alone; its console has no end of file.
    if (leave === undefined && sink.writable) sink.end();
  };
  const letGo = (): void => {
    sink.off('drain', resume);
    stdin.off('data', take).off('end', end).off('error', end);
    stdin.pause();
  };
  if (stdin.readableEnded) end();
  stdin.on('data', take).on('end', end).on('error', end);
  return letGo;
}
