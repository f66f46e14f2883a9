// Guests that wait for work on their consoles, in Zazen and in its peers: the same program in each. A script is kept under a name and then run as often as one likes; how long that takes is seen from outside, from the line
// that names it until the line that it has ended.

import { assert } from '../../src/base/assert.ts';
import type { Host } from '../../src/host/index.ts';
import { GUEST_CMDLINE } from '../busy-guest.ts';
import type { Program } from '../compute-programs.ts';
import type { StartQemu } from './qemu-guest.ts';

/** Takes one line for each step: a name, to be run; or a name and a script in base64, to be kept under it. */
const COMMAND = `cd /tmp; export LC_ALL=C; echo @ready; while read -r name script; do
if [ -n "$script" ]; then echo "$script" | base64 -d >"$name.sh"; echo "@kept $name"
else sh "$name.sh" >"$name.out" 2>&1; echo "@done $name $?"; cat "$name.out"; echo "@end $name"; fi; done`;

export interface WorkingGuestOptions {
  readonly kernelPath: string;
  readonly initramfsPath: string;
  readonly memoryMib: number;
  /** Default: 1. */
  readonly cpus?: number;
}

/** Where what a guest prints goes. */
export interface GuestOutput {
  feed(this: void, text: string): void;
  end(this: void): void;
}

export interface Ran {
  readonly millis: number;
  readonly output: string;
}

/** What makes Zazen's init and the ones like it run the program. */
const COMMAND_WORD = `zazen.exec=${Buffer.from(COMMAND).toString('base64')}`;

export class WorkingGuest<Who extends string = 'zazen' | 'qemu'> {
  readonly who: Who;
  readonly #write: (text: string) => void;
  /** Resolves when a text has come, counted from the last time. @returns what came until then */
  readonly #until: (text: string) => Promise<string>;

  private constructor(who: Who, write: (text: string) => void, until: (text: string) => Promise<string>) {
    this.who = who;
    this.#write = write;
    this.#until = until;
  }

  /** A guest of the host, which waits for work. */
  static async inZazen(
    host: Host, { initramfsPath, memoryMib, cpus = 1 }: Omit<WorkingGuestOptions, 'kernelPath'>,
  ): Promise<WorkingGuest> {
    const domain = await host.create({
      initrd: initramfsPath, memory: `${memoryMib}MiB`, vcpus: cpus, cmdline: GUEST_CMDLINE, exec: COMMAND,
    });
    const { input, output } = domain.exec!;
    return WorkingGuest.over('zazen', ({ feed, end }) => {
      output.setEncoding('utf8').on('data', feed).on('end', end);
      return text => { input.write(text); };
    });
  }

  /**
   * A guest of any machine, with COMMAND_WORD on its kernel's command line.
   * @param connect is told where to bring what the guest prints, starts it, and returns what writes to it
   */
  static async over<Who extends string>(
    who: Who, connect: (output: GuestOutput, commandWord: string) => (text: string) => void,
  ): Promise<WorkingGuest<Who>> {
    const { until, ...output } = reader();
    return new WorkingGuest(who, connect(output, COMMAND_WORD), until).#whenReady();
  }

  static async inQemu(start: StartQemu, { kernelPath, initramfsPath, memoryMib, cpus = 1 }: WorkingGuestOptions): Promise<WorkingGuest> {
    const qemu = await start({ kernelPath, initramfsPath, memoryMib, cpus, cmdline: `${GUEST_CMDLINE} ${COMMAND_WORD}` });
    let shown = 0;
    const until = async (text: string): Promise<string> => {
      await qemu.until(text, shown);
      const at = qemu.output.indexOf(text, shown);
      const before = qemu.output.slice(shown, at);
      shown = at + text.length;
      return before;
    };
    return new WorkingGuest('qemu' as const, text => qemu.write(text), until).#whenReady();
  }

  /** What is written before somebody reads is lost when the terminal is set up. */
  async #whenReady(): Promise<this> {
    await this.#until('@ready');
    return this;
  }

  async keep(name: string, script: string): Promise<void> {
    this.#write(`${name} ${Buffer.from(script).toString('base64')}\n`);
    await this.#until(`@kept ${name}`);
  }

  /** Keeps programs, and has made what they need. */
  async prepare(programs: readonly Pick<Program, 'name' | 'prepare' | 'script'>[]): Promise<void> {
    for (const { name, prepare, script } of programs) {
      await this.keep(name, script);
      if (prepare === undefined) continue;
      await this.keep(`prepare-${name}`, prepare);
      await this.run(`prepare-${name}`);
    }
  }

  /** @returns what it printed, after the line with its status; a script that fails is an error */
  async run(name: string): Promise<Ran> {
    const start = performance.now();
    this.#write(`${name}\n`);
    await this.#until(`@done ${name} `);
    const millis = performance.now() - start;
    const output = (await this.#until(`@end ${name}`)).replaceAll('\r', '');
    assert(output.startsWith('0\n'), `${this.who} ran ${name} with status ${output}`);
    return { millis, output };
  }
}

/** `until` over text that is fed to it. */
function reader(): GuestOutput & { until(text: string): Promise<string> } {
  let rest = '';
  let isEnded = false;
  let wake = (): void => {};
  return {
    feed: text => { rest += text; wake(); },
    end: () => { isEnded = true; wake(); },
    until: async wanted => {
      for (let at = rest.indexOf(wanted); ; at = rest.indexOf(wanted)) {
        if (at >= 0) {
          const before = rest.slice(0, at);
          rest = rest.slice(at + wanted.length);
          return before;
        }
        assert(!isEnded, `the guest ended without ${wanted}: ${rest.slice(-500)}`);
        await new Promise<void>(resolve => { wake = resolve; });
      }
    },
  };
}
