// `npm start`: the product on a real guest. In a terminal, a shell. Without one, the guest says what it is and powers
// off, then come the times that it took, and a second guest is taken through what can be done to it (life-tour.ts).

import { orAborted } from '../base/abort.ts';
import { UsageError } from '../base/errors.ts';
import { parseArguments } from './arguments.ts';
import { reportErrors } from './front-door.ts';
import type { Io } from './io.ts';
import { lifeTour } from './life-tour.ts';
import { runVerb } from './run.ts';
import { runSession } from './session.ts';
import type { SessionReport } from './session.ts';
import { formatTable } from './table.ts';
import type { Services } from './verb.ts';

/** What the guest says of itself. A file that is not there is left out. */
const INTRODUCTION = `
show() { printf '# %s\\n' "$*"; "$@"; }
show uname -a
printf '\\n# /sys/hypervisor\\n'
cd /sys/hypervisor
for file in type version/major version/minor version/extra uuid properties/features; do
  [ -r "$file" ] && printf '%-22s%s\\n' "$file" "$(cat "$file")"
done
echo
show free
echo
show cat /proc/interrupts
`;

/** @param words behind the command: it takes none */
export async function start(words: readonly string[], io: Io, given: Services): Promise<number> {
  return reportErrors(io, false, async () => {
    if (words.length > 0) throw new UsageError(`npm start takes nothing behind it, so not "${words[0]}"`, 'see: npm run zazen -- run --help');
    if (io.stdin.isTTY && io.stdout.isTTY) return runVerb.run(parseArguments(runVerb, []), io, given);
    io.stderr.write('zazen: no terminal here, so the guest introduces itself; in a terminal it gives a shell\n');
    const report = await runSession(io, {
      spec: { exec: INTRODUCTION },
      startHost: given.startHost,
      output: io.stdout,
      log: undefined,
      interactive: false,
      timeoutMillis: undefined,
    });
    io.stdout.write(`\n# what it took\n${describeTimings(report)}`);
    if (report.status === 0) await showLife(io, given);
    return report.status;
  });
}

async function showLife(io: Io, { startHost }: Services): Promise<void> {
  const host = await startHost({});
  const close = io.onExit(() => void host.close());
  try {
    io.stdout.write(`\n# its life\n${await orAborted(lifeTour(host, io.signal), io.signal)}`);
  } finally {
    await host.close();
    close();
  }
}

function describeTimings({ timings, stats }: SessionReport): string {
  const seconds = (millis?: number): string => millis === undefined ? '-' : `${(millis / 1000).toFixed(2)} s`;
  const mips = stats.runMillis > 0 ? stats.instructionsRetired / stats.runMillis / 1000 : 0;
  return formatTable([
    ['start of the host', seconds(timings.hostMillis)],
    ['loading the guest', seconds(timings.createMillis)],
    ['boot to init', seconds(timings.initMillis)],
    ['boot to the command', seconds(timings.commandStartMillis)],
    ['the command', seconds(timings.commandMillis)],
    ['total', seconds(timings.totalMillis)],
    ['instructions retired', `${(stats.instructionsRetired / 1e6).toFixed(0)} million`],
    ['speed', `${mips.toFixed(0)} MIPS`],
  ]);
}
