// A shell at the guest's end of the console, for tests that ask a running guest for one thing after another.

import type { Domain } from '../../src/host/index.ts';
import { collect, limited } from './guests.ts';

/** To be given as the guest's `exec`: it runs line by line what it reads. */
export const SHELL = 'while read -r line; do eval "$line"; done';

export class Shell {
  readonly domain: Domain;
  readonly name: string;
  readonly #console;
  readonly #text;
  #count = 0;

  /** @param name one of its own: forks of a guest see each other's earlier words */
  constructor(domain: Domain, name: string) {
    this.domain = domain;
    this.name = name;
    this.#console = domain.attachConsole();
    this.#text = collect(this.#console);
  }

  /** @returns the output of a command */
  async ask(command: string): Promise<string> {
    const mark = `${this.name}-${++this.#count}`;
    this.#console.write(`echo "<${mark}>"; ${command}; echo "<$((0))${mark}>"\n`);
    const all = await this.#text.until(`<0${mark}>\n`);
    return all.slice(all.lastIndexOf(`<${mark}>\n`) + mark.length + 3, all.lastIndexOf(`<0${mark}>`)).trimEnd();
  }

  /** A serial port loses what is typed before it is opened. */
  async ready(): Promise<this> {
    await this.#text.until('zazen-start ');
    return this;
  }

  /** The shell ends, and the guest powers off. */
  end(): void {
    this.#console.write('exit 0\n');
  }
}

/** Types a command at the shell's prompt. @returns what it put out */
export async function ask(domain: Domain, command: string): Promise<string> {
  const stream = domain.attachConsole();
  try {
    const shown = collect(stream);
    const mark = `end-${Math.floor(performance.now() * 1000)}`;
    stream.write(`echo begin-${mark}; ${command}; echo "${mark.replace('end', 'e""nd')}"\n`);
    const pattern = new RegExp(`begin-${mark}\\r\\n([^]*\\r\\n)??${mark}\\r\\n`);
    const text = await limited(domain, () => shown.until(pattern));
    return (pattern.exec(text)![1] ?? '').replaceAll('\r', '');
  } finally {
    stream.destroy();
  }
}
