// The syntax of xl.cfg(5): assignments of strings, numbers and lists to keys. What the keys mean is domain-config.ts's.
//
//   file   = { [ KEY ( "=" | "+=" ) value ] ( newline | ";" ) }        # to the end of the line is a comment
//   value  = string | number | "[" [ value { "," value } [ "," ] ] "]"    newlines may stand anywhere within a list
//   string = '…' or "…" with \ escapes, on one line                     number = decimal, 0x… or octal 0…

import { ZazenError } from '../base/errors.ts';

export type ConfigValue = string | number | readonly ConfigValue[];

export interface ConfigEntry {
  readonly value: ConfigValue;
  readonly line: number;
}

export const CONFIG_MAX_CHARACTERS = 2 ** 20;
const NESTING_MAX = 16;

const ESCAPES: Readonly<Record<string, string>> = {
  a: '\x07', b: '\b', f: '\f', n: '\n', r: '\r', t: '\t', v: '\v', '\\': '\\', "'": "'", '"': '"',
};

/**
 * The assignments, the last one of a key winning; `+=` adds to a string or list.
 * @param source how the errors call the text
 * @throws ZazenError ZAZEN_CONFIG_SYNTAX
 */
export function parseConfig(text: string, source: string): Map<string, ConfigEntry> {
  const entries = new Map<string, ConfigEntry>();
  const reader = new Reader(text, source);
  for (;;) {
    reader.skipSeparators();
    if (reader.atEnd) return entries;
    const line = reader.line;
    const key = reader.take(/[A-Za-z_][A-Za-z0-9_]*/y) ?? reader.fail('a key is expected');
    reader.skipBlanks();
    const operator = reader.take(/\+?=/y) ?? reader.fail(`after ${key} comes =`);
    reader.skipBlanks();
    const value = reader.readValue(0);
    const before = entries.get(key)?.value;
    const isNew = operator === '=' || before === undefined;
    entries.set(key, { line, value: isNew ? value : join(before, value, key, reader) });
    reader.skipBlanks();
    if (!reader.atSeparator) reader.fail(`after the value of ${key} comes a new line or ;`);
  }
}

function join(before: ConfigValue, value: ConfigValue, key: string, reader: Reader): ConfigValue {
  if (typeof before === 'string' && typeof value === 'string') return before + value;
  if (Array.isArray(before) && Array.isArray(value)) return [...before, ...value];
  return reader.fail(`+= cannot add this to what ${key} has already`);
}

class Reader {
  readonly #text: string;
  readonly #source: string;
  #at = 0;
  #line = 1;

  constructor(text: string, source: string) {
    this.#text = text;
    this.#source = source;
    if (text.length > CONFIG_MAX_CHARACTERS) this.fail('it is too long for a configuration');
  }

  get line(): number {
    return this.#line;
  }
  get atEnd(): boolean {
    return this.#at >= this.#text.length;
  }
  get atSeparator(): boolean {
    return this.atEnd || /[\n;]/.test(this.#text[this.#at]!);
  }

  fail(what: string): never {
    throw new ZazenError('ZAZEN_CONFIG_SYNTAX', `${this.#source}, line ${this.#line}: ${what}`, {
      hint: 'the syntax is that of xl.cfg',
    });
  }

  /** @param pattern sticky */
  take(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.#text)?.[0];
    if (found === undefined) return undefined;
    this.#at += found.length;
    for (const character of found) if (character === '\n') this.#line++;
    return found;
  }

  skipBlanks(): void {
    this.take(/(?:[ \t\r]+|#[^\n]*)*/y);
  }
  skipSpace(): void {
    this.take(/(?:\s+|#[^\n]*)*/y);
  }
  skipSeparators(): void {
    this.take(/(?:[\s;]+|#[^\n]*)*/y);
  }

  readValue(depth: number): ConfigValue {
    const character = this.#text[this.#at];
    if (character === '"' || character === "'") return this.#readString();
    if (character === '[') return this.#readList(depth);
    const number = this.take(/[0-9][0-9A-Za-z]*/y);
    if (number !== undefined) return this.#toNumber(number);
    return this.fail('a value is expected: a string in quotes, a number or a list in [ ]');
  }

  #toNumber(text: string): number {
    const isOctal = /^0[0-7]+$/.test(text);
    const number = Number(isOctal ? `0o${text.slice(1)}` : text);
    const isNumber = /^0[xX][0-9a-fA-F]+$/.test(text) || isOctal || /^(?:0|[1-9][0-9]*)$/.test(text);
    if (!isNumber || !Number.isSafeInteger(number)) this.fail(`"${text.slice(0, 40)}" is no number`);
    return number;
  }

  #readList(depth: number): ConfigValue[] {
    if (depth >= NESTING_MAX) this.fail('lists are nested too deeply');
    const list: ConfigValue[] = [];
    this.#at++;
    for (;;) {
      this.skipSpace();
      if (this.take(/\]/y) !== undefined) return list;
      if (this.atEnd) this.fail('a list is not closed');
      list.push(this.readValue(depth + 1));
      this.skipSpace();
      const isSeparated = this.take(/,/y) !== undefined || this.#text[this.#at] === ']';
      if (!isSeparated) this.fail('in a list, values are separated by commas');
    }
  }

  #readString(): string {
    const quote = this.#text[this.#at++]!;
    let value = '';
    for (;;) {
      const character = this.#text[this.#at++];
      if (character === undefined || character === '\n') return this.fail('a string is not closed on its line');
      if (character === quote) return value;
      value += character === '\\' ? this.#readEscape() : character;
    }
  }

  #readEscape(): string {
    const code = this.take(/x[0-9a-fA-F]{2}/y);
    if (code !== undefined) return String.fromCharCode(Number.parseInt(code.slice(1), 16));
    const octal = this.take(/[0-3]?[0-7]{1,2}/y);
    if (octal !== undefined) return String.fromCharCode(Number.parseInt(octal, 8));
    const letter = this.#text[this.#at++] ?? '';
    return ESCAPES[letter] ?? this.fail(`there is no escape \\${letter}`);
  }
}
