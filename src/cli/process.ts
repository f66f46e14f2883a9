// The process around a command: signals, a broken pipe, the terminal, the exit status.
//
//   signal                 abort the command, which cleans up; exit 128 + number
//   the same again         (after the first was heeded) leave at once: undo what must be undone, exit
//   EPIPE on stdout        as SIGPIPE would: quietly, 141
//   stdout not written     for want of space, for instance: a line, and 1, also where the command has ended before that is known
//   a failed assertion     our own bug, wherever it is noticed: its stack, and 70 (EX_SOFTWARE)

import { constants } from 'node:os';
import { inspect } from 'node:util';
import { withSourcePositions } from '../base/source-positions.ts';
import { Interruption, say } from './io.ts';
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
    tellBug(error);
    process.exit(EX_SOFTWARE);
  });
  let unwritten: Interruption | undefined;
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    const message = error.code === 'EPIPE' ? '' : `cannot write standard output: ${error.message}`;
    unwritten ??= new Interruption(message, error.code === 'EPIPE' ? 128 + constants.signals.SIGPIPE : 1);
    controller.abort(unwritten);
  });
  // Nobody is left to be told.
  process.stderr.on('error', () => {});
  let status: number;
  try {
    status = await command(io);
  } catch (error) {
    undoAll();
    tellBug(error);
    status = EX_SOFTWARE;
  }
  undoAll();
  await Promise.all([flushed(process.stdout), flushed(process.stderr)]);
  const failure = unwritten as Interruption | undefined;
  if (status === 0 && failure !== undefined) {
    if (failure.message !== '') say(io, failure.message);
    status = failure.status;
  }
  process.exit(status);
}

const tellBug = (error: unknown): void => { console.error(withSourcePositions(inspect(error))); };

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

/** When all is written or has failed, and the stream's listeners have heard of that. */
async function flushed(stream: NodeJS.WriteStream): Promise<void> {
  if (!stream.destroyed && stream.writableLength > 0) {
    await new Promise<void>((resolve) => {
      stream.once('error', () => resolve());
      stream.write('', () => resolve());
    });
  }
  await new Promise((resolve) => { setImmediate(resolve); });
}
