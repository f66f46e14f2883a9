// A guest at work of which every line of output is known beforehand, and someone who checks the lines as they come.
//
// Two processes in the guest, on two vCPUs, for ever:
//
//   m ROUND HASH   a program adds pseudo-random numbers to pseudo-random words of a buffer and keeps a checksum of what
//                  the buffer must be; each round it compares that with the whole buffer. ROUND and HASH are 8 digits
//                  of hexadecimal
//   f ROUND MD5    a shell writes, removes and reads files of an ext2 file system on a RAM disk, which is unmounted and
//                  mounted again now and then; what a file holds depends on all that was there before
//
// Memory that is lost, old or another's makes the program say so, or a line come out wrong.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { Assembler } from '../../src/a64/test-assembler.ts';
import { prepareGuest } from '../../src/guest/initramfs.ts';
import type { Checkpoint, Domain, DomainSpec } from '../../src/host/index.ts';
import { PATIENCE_MILLIS } from '../patience.ts';
import { FAST_BOOT } from './guests.ts';

// ---- the program: a static ELF file for Linux, with the buffer behind it
//
//   0x40_0000 ┌──────────────────────────────┐
//             │ ELF header, program header   │
//   0x40_0078 │ program                      │
//   0x4f_0000 │ the line to be printed       │
//   0x50_0000 │ buffer                       │ 1 MiB
//             └──────────────────────────────┘

const ORIGIN = 0x40_0000;
const HEADERS_BYTES = 0x78;
const LINE = 0x4f_0000;
const BUFFER = 0x50_0000;
const WORDS = 2 ** 18;
const WRITES = 1024;
const SEED = 0x1234_5678;
const SYS_WRITE = 64;
const SYS_EXIT = 93;

function program(): Uint8Array {
  const a = new Assembler(ORIGIN + HEADERS_BYTES);
  const xorShift = (shift: number, imm6: number) =>
    a.emit('EOR (shifted register)', { sf: 0, shift, Rm: 20, imm6, Rn: 20, Rd: 20 });
  const addW = (Rd: number, Rn: number, Rm: number) => a.emit('ADD (register)', { sf: 0, Rm, Rn, Rd });
  const maddW = (Rn: number, Rm: number, Ra: number, Rd: number) => a.emit('MADD', { sf: 0, Rn, Rm, Ra, Rd });
  a.mov(19, BUFFER).mov(20, SEED).mov(21, 0).mov(22, 0);
  a.label('round').add(22, 22, 1).mov(23, WRITES);
  a.label('write');
  xorShift(0, 13);
  xorShift(1, 17);
  xorShift(0, 5);
  // x1 = index, x2 = address, w4 = weight 2 * index + 1
  a.emit('AND (immediate)', { sf: 0, N: 0, immr: 0, imms: Math.log2(WORDS) - 1, Rn: 20, Rd: 1 });
  a.emit('ADD (shifted register)', { sf: 1, shift: 0, Rm: 1, imm6: 2, Rn: 19, Rd: 2 });
  a.ldr(3, 2, 0, 'W');
  addW(3, 3, 20);
  a.str(3, 2, 0, 'W');
  addW(4, 1, 1);
  a.add(4, 4, 1);
  maddW(20, 4, 21, 21);
  a.subs(23, 23, 1).bCond('ne', 'write');
  a.movReg(2, 19).mov(3, WORDS).mov(4, 1).mov(5, 0);
  a.label('check').emit('LDR W (post-index)', { imm9: 4, Rn: 2, Rt: 6 });
  maddW(6, 4, 5, 5);
  a.add(4, 4, 2).subs(3, 3, 1).bCond('ne', 'check');
  a.emit('SUBS (register)', { sf: 0, Rm: 21, Rn: 5, Rd: 31 }).bCond('ne', 'spoilt');
  a.mov(2, LINE).mov(7, 'm'.charCodeAt(0)).mov(8, ' '.charCodeAt(0)).mov(9, '\n'.charCodeAt(0));
  const put = (Rt: number) => a.emit('STRB W (post-index)', { imm9: 1, Rn: 2, Rt });
  const hex = (register: number) => {
    a.movReg(1, register).mov(3, 8).label(`digit-${register}`);
    a.emit('UBFM', { sf: 0, N: 0, immr: 28, imms: 31, Rn: 1, Rd: 4 }).add(5, 4, '0'.charCodeAt(0)).cmp(4, 10);
    a.bCond('cc', `decimal-${register}`).add(5, 4, 'a'.charCodeAt(0) - 10).label(`decimal-${register}`);
    put(5);
    a.emit('UBFM', { sf: 0, N: 0, immr: 28, imms: 27, Rn: 1, Rd: 1 }).subs(3, 3, 1).bCond('ne', `digit-${register}`);
  };
  put(7);
  put(8);
  hex(22);
  put(8);
  hex(21);
  put(9);
  a.mov(0, 1).mov(1, LINE).mov(2, 20).mov(8, SYS_WRITE).svc(0).b('round');
  a.label('spoilt').mov(0, 1).adr(1, 'text').mov(2, 12).mov(8, SYS_WRITE).svc(0).mov(0, 1).mov(8, SYS_EXIT).svc(0);
  a.label('text').word(...[...'m is spoilt\n'].map(c => c.charCodeAt(0)).reduce<number[]>((words, byte, i) => {
    words[i >> 2] = (words[i >> 2] ?? 0) | byte << 8 * (i & 3);
    return words;
  }, []));
  return executable(a.words());
}

function executable(words: readonly number[]): Uint8Array {
  const bytes = Buffer.alloc(HEADERS_BYTES + 4 * words.length);
  bytes.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  bytes.writeUInt16LE(2, 16); // ET_EXEC
  bytes.writeUInt16LE(183, 18); // EM_AARCH64
  bytes.writeUInt32LE(1, 20);
  bytes.writeUInt32LE(ORIGIN + HEADERS_BYTES, 24); // e_entry
  bytes.writeUInt32LE(64, 32); // e_phoff
  bytes.writeUInt16LE(64, 52);
  bytes.writeUInt16LE(56, 54);
  bytes.writeUInt16LE(1, 56);
  bytes.writeUInt32LE(1, 64); // PT_LOAD
  bytes.writeUInt32LE(7, 68); // readable, writable, executable
  bytes.writeUInt32LE(ORIGIN, 80);
  bytes.writeUInt32LE(ORIGIN, 88);
  bytes.writeUInt32LE(bytes.length, 96);
  bytes.writeUInt32LE(BUFFER + 4 * WORDS - ORIGIN, 104);
  bytes.writeUInt32LE(4096, 112);
  words.forEach((word, index) => bytes.writeUInt32LE(word, HEADERS_BYTES + 4 * index));
  return bytes;
}

const FILES = 9;
/** Makes some pages of every line that goes to a file. */
const FILLER = 'filler-'.repeat(400);

/** Needs the module of RAM disks. */
function workloadCommand(): string {
  return `cd /; echo '${Buffer.from(program()).toString('base64')}' | base64 -d >/churn; chmod +x /churn; mkdir /w
    mke2fs /dev/ram0 >/dev/null; mount /dev/ram0 /w; n=0; while [ $n -lt ${FILES} ]; do : >/w/$n; n=$((n+1)); done
    files() { n=0 h=none
      while :; do n=$((n+1))
        echo $n $h ${FILLER} >>/w/$((n%${FILES}))
        [ $((n%5)) = 0 ] && : >/w/$(((n+3)%${FILES}))
        [ $((n%16)) = 0 ] && { umount /w; mount /dev/ram0 /w; }
        h=$(md5sum </w/$((n*4%${FILES}))); h=\${h%% *}
        echo f $n $h
      done; }
    files & /churn; wait`;
}

// ---- what it says when nobody disturbs it

const md5 = (text: string): string => createHash('md5').update(text).digest('hex');

function* memoryRounds(): Generator<string> {
  for (let x = SEED, hash = 0; ;) {
    for (let i = 0; i < WRITES; i++) {
      x ^= x << 13;
      x ^= x >>> 17;
      x ^= x << 5;
      hash = (hash + Math.imul(x, 2 * (x & (WORDS - 1)) + 1)) | 0;
    }
    yield (hash >>> 0).toString(16).padStart(8, '0');
  }
}

function* fileRounds(): Generator<string> {
  const files = Array.from({ length: FILES }, () => '');
  for (let n = 1, hash = 'none'; ; n++) {
    files[n % FILES] += `${n} ${hash} ${FILLER}\n`;
    if (n % 5 === 0) files[(n + 3) % FILES] = '';
    yield hash = md5(files[n * 4 % FILES]!);
  }
}

class Known {
  readonly #rounds: Generator<string>;
  readonly #values: string[] = [];

  constructor(rounds: Generator<string>) {
    this.#rounds = rounds;
  }
  /** @param round from 1 on */
  at(round: number): string {
    while (this.#values.length < round) this.#values.push(this.#rounds.next().value as string);
    return this.#values[round - 1]!;
  }
}
const known = { m: new Known(memoryRounds()), f: new Known(fileRounds()) };

// ---- checking

/** Where the guest's output stands: the last round of either kind, and the line that is not complete yet. */
export interface Place {
  readonly m: number | undefined;
  readonly f: number | undefined;
  readonly rest: string;
}
const NOWHERE: Place = { m: undefined, f: undefined, rest: '' };

/** A moment at which a checkpoint was taken. */
export interface Mark {
  place: Place | undefined;
}

const TROUBLE = /spoilt|BUG|Oops|panic|EXT4-fs.*error|I\/O error|Segmentation|not found|can't|Killed/;

/** Follows the console of a guest at work through checkpoints and rollbacks. A wrong line is thrown by `assertGood`. */
export class Watch {
  readonly domain: Domain;
  /** Lines that were right. */
  lines = 0;
  place: Place = NOWHERE;
  readonly #stream;
  /** Position in the stream of the domain's first byte; before it, what its original had said. */
  readonly #start: number;
  #position = 0;
  #backlog = '';
  #isHeld = false;
  readonly #cuts: { readonly at: number; readonly act: () => void }[] = [];
  readonly #failures: string[] = [];
  readonly #waiting = new Set<() => void>();

  /** @param from where it is a fork of, or restored from */
  constructor(domain: Domain, from?: Mark) {
    this.domain = domain;
    this.#stream = domain.attachConsole();
    // Now it is read: from here on, stream and counter go together.
    this.#stream.read(0);
    this.#start = this.#stream.readableLength - domain.stats().consoleOutBytes;
    if (from !== undefined) this.#cuts.push({ at: this.#start, act: () => this.#compare(from) });
    this.#stream.on('data', (chunk: Buffer) => {
      this.#backlog += chunk.toString('latin1');
      this.#advance();
    });
  }

  #compare(from: Mark): void {
    const { place } = from;
    const isSame = place !== undefined && place.rest.endsWith(this.place.rest) && place.m === (this.place.m ?? place.m)
      && place.f === (this.place.f ?? place.f);
    if (!isSame) this.#fail(`its history ends at ${JSON.stringify(this.place)}, not at ${JSON.stringify(place)}`);
    else this.place = place;
  }
  #fail(message: string): void {
    this.#failures.push(`${this.domain.name}: ${message}`);
  }

  #advance(): void {
    while (!this.#isHeld) {
      const cut = this.#cuts[0];
      const available = Math.min(this.#backlog.length, (cut?.at ?? Infinity) - this.#position);
      this.#feed(this.#backlog.slice(0, available));
      this.#backlog = this.#backlog.slice(available);
      this.#position += available;
      if (cut === undefined || this.#position < cut.at) break;
      this.#cuts.shift();
      cut.act();
    }
    for (const check of this.#waiting) check();
  }

  #feed(text: string): void {
    const lines = (this.place.rest + text).split('\n');
    const rest = lines.pop()!;
    let { m, f } = this.place;
    for (const line of lines) {
      const found = /^(?:m ([0-9a-f]{8}) ([0-9a-f]{8})|f (\d+) ([0-9a-f]{32}))\r?$/.exec(line);
      if (found === null) {
        // What a history begins with may be the end of a line; all else that is said is the kernel's and the shell's.
        const isKnown = m === undefined && f === undefined || !/^[mf] /.test(line);
        if (!isKnown || TROUBLE.test(line)) this.#fail(`said ${JSON.stringify(line)}`);
        continue;
      }
      const kind = found[1] === undefined ? 'f' : 'm';
      const round = kind === 'm' ? Number.parseInt(found[1]!, 16) : Number(found[3]);
      const before = kind === 'm' ? m : f;
      if (round !== (before ?? round - 1) + 1) this.#fail(`said ${kind} ${round} after ${before}`);
      else if (known[kind].at(round) === (found[2] ?? found[4])) this.lines++;
      else this.#fail(`said ${JSON.stringify(line)}, not ${known[kind].at(round)}`);
      if (kind === 'm') m = round;
      else f = round;
    }
    this.place = { m, f, rest };
  }

  #now(): number {
    return this.#start + this.domain.stats().consoleOutBytes;
  }
  /** Runs a verb that cuts the output where it is now; if it fails, there is no cut. */
  async #cut<T>(verb: () => Promise<T>, act: (result: T) => void): Promise<T> {
    const at = this.#now();
    this.#isHeld = true;
    try {
      const result = await verb();
      this.#cuts.push({ at, act: () => act(result) });
      return result;
    } finally {
      this.#isHeld = false;
      this.#advance();
    }
  }
  async checkpoint(): Promise<{ checkpoint: Checkpoint; mark: Mark }> {
    const mark: Mark = { place: undefined };
    const checkpoint = await this.#cut(() => this.domain.checkpoint(), () => { mark.place = this.place; });
    await this.#until(() => mark.place !== undefined);
    return { checkpoint, mark };
  }
  async rollback(checkpoint: Checkpoint, mark: Mark): Promise<void> {
    await this.#cut(() => this.domain.rollback(checkpoint), () => { this.place = mark.place!; });
  }

  /** Waits until it has said so many further right lines of either kind, or something wrong. */
  async progress(rounds = 2): Promise<void> {
    const start = this.place;
    const isFurther = (now = 0, before = 0): boolean => now >= before + rounds;
    await this.#until(() => this.#failures.length > 0
      || isFurther(this.place.m, start.m) && isFurther(this.place.f, start.f));
    this.assertGood();
  }
  #until(condition: () => boolean): Promise<void> {
    return new Promise((resolve, reject) => {
      const check = (): void => {
        if (!condition()) return;
        this.#waiting.delete(check);
        clearTimeout(timer);
        resolve();
      };
      const timer = setTimeout(() => {
        this.#waiting.delete(check);
        reject(new Error(`${this.domain.name} (${this.domain.state}) does not get on: ${JSON.stringify(this.place)}`));
      }, PATIENCE_MILLIS);
      this.#waiting.add(check);
      check();
    });
  }

  assertGood(): void {
    assert.deepEqual(this.#failures.slice(0, 5), []);
  }
  close(): void {
    this.#stream.destroy();
  }
}

type WorkSpec = Required<Pick<DomainSpec, 'initrd' | 'exec' | 'cmdline'>>;

/** Boots a guest at work and lets it alone for a while. */
export async function startWork(create: (spec: WorkSpec) => Promise<Domain>): Promise<Watch> {
  const initrd = (await prepareGuest({ modules: ['brd'] })).initramfsPath;
  const domain = await create({ initrd, exec: workloadCommand(), cmdline: FAST_BOOT });
  domain.exec!.output.resume();
  const watch = new Watch(domain);
  await watch.progress(5);
  return watch;
}
