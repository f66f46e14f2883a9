// A progress bar on standard error for what takes long, where that is a terminal.

import type { Progress } from '../daemon/protocol.ts';
import type { Io } from './io.ts';

const CLEAR_LINE = '\r\x1b[K';
const BAR_WIDTH = 30;

export interface ProgressBar extends Disposable {
  show(progress: Progress): void;
}

/** Disposing of it clears the line. @param what a word before the bar */
export function progressBar(io: Io, what: string): ProgressBar {
  let isShown = false;
  return {
    show({ done, total }) {
      if (!io.stderr.isTTY || !(total > 0)) return;
      isShown = true;
      const fraction = Math.min(1, Math.max(0, done / total));
      const bar = '#'.repeat(Math.round(fraction * BAR_WIDTH)).padEnd(BAR_WIDTH, '.');
      io.stderr.write(`${CLEAR_LINE}${what} [${bar}] ${Math.floor(fraction * 100)} %`);
    },
    [Symbol.dispose]() {
      if (isShown) io.stderr.write(CLEAR_LINE);
    },
  };
}
