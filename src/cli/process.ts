// The process around a command: signals, a broken pipe, the terminal, the exit status.
//
//   signal                 abort the command, which cleans up; exit 128 + number
//   the same again         (after the first was heeded) leave at once: undo what must be undone, exit
//   EPIPE on stdout        as SIGPIPE would: quietly, 141
//   a failed assertion     our own bug, wherever it is noticed: its stack, and 70 (EX_SOFTWARE)

import { constants } from 'node:os';
import { Interruption } from './io.ts';
import type { Io } from './io.ts';

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT'] as const;
/** A signal is often told twice: by the terminal to all of us, and by a launcher (npm, npx) that passes it on. */
const SAME_SIGNAL_MILLIS = 250;
const EX_SOFTWARE = 70;

/** Runs `command` with the real streams, and ends the process with the status that it gives. */
export async function runProcess(command: (io: Io) => Promise<number>): Promise<never> {
  const controller = new AbortController();
  const undos = new Set<() => void>();
  const undoAll = (): void => {
    for (const undo of [...undos]) undo();
  };
  const io: Io = {
    stdin: process.stdin,
    stdout: process.stdout,
    stderr: process.stderr,
    env: process.env,
    signal: controller.signal,
    onExit(undo) {
      const once = (): void => {
        if (undos.delete(once)) undo();
      };
      undos.add(once);
      return once;
    },
  };
  process.on('exit', undoAll);
  listenToSignals(controller);
  // Of a thread of the host, or of nobody's task: nothing of the host can be trusted any more, and so nothing of it is closed.
  process.on('uncaughtException', (error) => {
    undoAll();
    console.error(error);
    process.exit(EX_SOFTWARE);
  });
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    const message = error.code === 'EPIPE' ? '' : `cannot write standard output: ${error.message}`;
    controller.abort(new Interruption(message, error.code === 'EPIPE' ? 128 + constants.signals.SIGPIPE : 1));
  });
  // Nobody is left to be told.
  process.stderr.on('error', () => {});
  let status: number;
  try {
    status = await command(io);
  } catch (error) {
    undoAll();
    console.error(error);
    status = EX_SOFTWARE;
  }
  undoAll();
  await Promise.all([flushed(process.stdout), flushed(process.stderr)]);
  process.exit(status);
}

function listenToSignals(controller: AbortController): void {
  let firstMillis: number | undefined;
  for (const name of SIGNALS) {
    process.on(name, () => {
      const status = 128 + constants.signals[name];
      const now = performance.now();
      if (firstMillis === undefined) {
        firstMillis = now;
        controller.abort(new Interruption(`ended by ${name}`, status));
      } else if (now - firstMillis > SAME_SIGNAL_MILLIS) {
        process.exit(status);
      }
    });
  }
}

function flushed(stream: NodeJS.WriteStream): Promise<void> {
  if (stream.destroyed || stream.writableLength === 0) return Promise.resolve();
  return new Promise((resolve) => {
    stream.once('error', () => resolve());
    stream.write('', () => resolve());
  });
}
