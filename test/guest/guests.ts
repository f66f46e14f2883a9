// What the whole-system tests share: hosts with a time limit, guests that run a list of commands in one boot, and what
// a healthy kernel log looks like.
//
// A boot takes seconds, so many checks share one: a guest is given named sections of shell script, runs them one after
// the other, each in a shell of its own, and frames what each writes:
//
//   RS "begin NAME" LF   the section's output, byte for byte   RS "end STATUS" LF

import assert from 'node:assert/strict';
import { after } from 'node:test';
import { fetchPackages } from '../../src/guest/packages.ts';
import { prepareGuest } from '../../src/guest/initramfs.ts';
import { Host } from '../../src/host/index.ts';
import type { Domain, DomainSpec, HostOptions } from '../../src/host/index.ts';
import { hostMemory } from '../host-memory.ts';
import { PATIENCE_MILLIS } from '../patience.ts';
import { describeStuck } from './stuck-guest.ts';

/** Debian's programs that the tests run; the C library and the like come as dependencies. */
const PROGRAM_PACKAGES = ['openssl', 'python3-minimal', 'libpython3-stdlib', 'xz-utils', 'zstd'];

/**
 * Linux takes a CPU for broken that is away for twenty seconds, as one may be on a machine that does much else: here it does
 * not look, or not for long. A guest that is stuck is one that does not get on.
 */
export const PATIENT = 'nowatchdog rcupdate.rcu_cpu_stall_timeout=300';

/** Takes from the boot what is not under test: the kernel's own checks of its ciphers and the block tracer's set-up. */
export const FAST_BOOT = `quiet ${PATIENT} cryptomgr.notests initcall_blacklist=init_blk_tracer`;

/** A host with 32-bit addresses and one with 64-bit addresses: the same must hold on both. Only what is used costs. */
export const HOST_SIZES = ['2GiB', '8GiB'] as const;

/** A clock of seconds, set from another one. */
const CLOCK_TOLERANCE_SECONDS = 2;

const RS = '\x1e';

export interface Section {
  /** Standard output and error. */
  readonly output: string;
  /** As a shell has it. */
  readonly status: number;
}

export interface GuestRun {
  /** Fails the test if there is none of that name, or if it did not end with status 0. */
  outputOf(name: string): string;
  section(name: string): Section;
  /** What the kernel and init wrote to the console outside the sections. */
  readonly log: string;
}

/**
 * The host of a file's tests: closed after the last one, when its memory must be accounted for. Call at top level.
 * @param memory where it is that size that matters
 */
export async function testHost(options: HostOptions = {}, memory = hostMemory(options.memory)): Promise<Host> {
  const host = await Host.start({ ...options, memory });
  after(async () => {
    const { problems } = await host.audit();
    await host.close();
    assert.deepEqual(problems, []);
  });
  return host;
}

/** The path of an initramfs with `PROGRAM_PACKAGES`; fetched and built once, then from the cache. */
export async function programsInitramfs(): Promise<string> {
  const tree = await fetchPackages(PROGRAM_PACKAGES, { withDependencies: true });
  return (await prepareGuest({ trees: [tree] })).initramfsPath;
}

/** One command for `sh -c` that runs the sections. */
export function sectionsCommand(sections: Readonly<Record<string, string>>): string {
  return Object.entries(sections).map(([name, script]) =>
    `printf '\\036begin %s\\n' '${name}'\n(\n${script}\n)\nprintf '\\036end %d\\n' $?`).join('\n');
}

/** Boots a guest that runs `sections`, and destroys it when it has powered off, as it must. */
export async function runSections(
  host: Host, spec: DomainSpec, sections: Readonly<Record<string, string>>, input?: Uint8Array,
): Promise<GuestRun> {
  const domain = await host.create({ ...spec, exec: sectionsCommand(sections) });
  const exec = domain.exec!;
  const output = collect(exec.output);
  const log = collect(exec.log);
  exec.input.end(input);
  await limited(domain, async () => {
    const { status } = await exec.result.catch((error: Error) => {
      throw new Error(`${error.message}\nlog: ${log.text()}\noutput: ${output.text().slice(-4000)}`);
    });
    assert.equal(status, 0);
    assert.equal(await domain.waitForShutdown(), 'poweroff');
  });
  await domain.destroy();
  const found = parseSections(output.text());
  assert.deepEqual([...found.keys()], Object.keys(sections), output.text().slice(-4000));
  const section = (name: string): Section => {
    const entry = found.get(name);
    assert(entry !== undefined, `no section ${name}`);
    return entry;
  };
  const outputOf = (name: string): string => {
    const { output: text, status } = section(name);
    assert.equal(status, 0, `section ${name}: ${text}`);
    return text;
  };
  return { section, outputOf, log: log.text() };
}

function parseSections(text: string): Map<string, Section> {
  const sections = new Map<string, Section>();
  const pattern = new RegExp(`${RS}begin (\\S+)\\n([^${RS}]*)${RS}end (\\d+)\\n`, 'g');
  for (const [, name, output, status] of text.matchAll(pattern)) {
    sections.set(name!, { output: output!, status: Number(status) });
  }
  return sections;
}

/** Gathers what a stream gives, as Latin-1: a byte a character. */
export function collect(stream: NodeJS.ReadableStream): { text(): string; until(wanted: string | RegExp): Promise<string> } {
  const chunks: string[] = [];
  const waiting = new Set<() => void>();
  let isEnded = false;
  const wake = (): void => { for (const check of waiting) check(); };
  stream.on('data', (chunk: Buffer) => {
    chunks.push(chunk.toString('latin1'));
    wake();
  });
  const end = (): void => { isEnded = true; wake(); };
  stream.on('end', end).on('close', end);
  const text = (): string => chunks.join('');
  const until = (wanted: string | RegExp): Promise<string> => new Promise((resolve, reject) => {
    const check = (): void => {
      const all = text();
      const isThere = typeof wanted === 'string' ? all.includes(wanted) : wanted.test(all);
      if (!isThere && !isEnded) return;
      waiting.delete(check);
      if (isThere) resolve(all);
      else reject(new Error(`the stream ended without ${wanted}: ${all.slice(-4000)}`));
    };
    waiting.add(check);
    check();
  });
  return { text, until };
}

/**
 * `work`, with an end to it: a guest that does not get there in time is stuck. It is destroyed, which ends what waits for it,
 * and the error shows what it was doing.
 */
export async function limited<T>(domain: Domain, work: () => Promise<T>, millis = PATIENCE_MILLIS): Promise<T> {
  let stuck: Promise<string> | undefined;
  const timer = setTimeout(() => {
    stuck = describeStuck(domain);
    void stuck.then(() => domain.destroy());
  }, millis);
  try {
    return await work();
  } catch (error) {
    if (stuck === undefined) throw error;
    throw new Error(`the guest took longer than ${millis} ms: ${(error as Error).message}\n${await stuck}`, { cause: error });
  } finally {
    clearTimeout(timer);
  }
}

/**
 * What a guest's clock has shown since a moment is no earlier than that and no later than now, but for what seconds leave out.
 * @param bootMillis how long it booted at most; Linux's own clock is behind by what it took until it first looked at its counter
 */
export function assertTime(unixSeconds: number, sinceMillis: number, bootMillis = 0): void {
  const earliest = (sinceMillis - bootMillis) / 1000 - CLOCK_TOLERANCE_SECONDS;
  const latest = Date.now() / 1000 + CLOCK_TOLERANCE_SECONDS;
  assert(unixSeconds >= earliest && unixSeconds <= latest, `it showed ${unixSeconds}, not ${earliest} to ${latest}`);
}

/** Lines of a kernel log that tell of something wrong, other than those that any guest of Xen on Arm has. */
export function complaints(kernelLog: string): string[] {
  const bad = /\b(WARNING|BUG|Oops|Unable to handle|Call trace|cut here|panic|stall|lockup|soft|hung)\b|[Ee]rror|[Ff]ail/i;
  // What it was told by the command line, as `PATIENT` does, it repeats.
  return kernelLog.split('\n').filter((line) => bad.test(line) && !/\] (Kernel command line: |\tRCU CPU stall warnings timeout set to )/.test(line));
}

/** Keeps this thread from its event loop until the guest's first card has received so many frames more. */
export function blockUntilReceived(domain: Domain, count: number): void {
  const received = (): number => domain.stats().nics[0]!.rxFrames;
  let hasTurned = false;
  setImmediate(() => { hasTurned = true; });
  const [before, start] = [received(), performance.now()];
  while (received() < before + count) assert(performance.now() - start < PATIENCE_MILLIS, 'frames wait for the main thread');
  assert.equal(hasTurned, false);
}
