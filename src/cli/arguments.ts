// Command lines: each verb has a table of its options, from which its arguments are read and its help is written.

import { parseArgs } from 'node:util';
import { UsageError } from '../base/errors.ts';

export interface OptionRow {
  /** What stands for the value in the help; an option without it is a switch. */
  readonly value?: string;
  readonly short?: string;
  /** It may be given any number of times; its values are in `lists`. */
  readonly isList?: boolean;
  readonly help: string;
}

export type OptionTable = Readonly<Record<string, OptionRow>>;

export interface Positional {
  /** What stands for the word in the help. */
  readonly name: string;
  readonly optional?: boolean;
  /** The last one only: any number of words. */
  readonly many?: boolean;
}

export interface VerbSyntax {
  /** As typed after `zazen`; may be two words. */
  readonly name: string;
  readonly summary: string;
  /** Words without a dash that it takes, in order. */
  readonly positionals?: readonly Positional[];
  /** What may follow the options, for the help: ` [-- COMMAND ARGUMENT...]`. */
  readonly rest?: string;
  /** Further paragraphs of the help. */
  readonly details?: string;
  readonly options: OptionTable;
}

export interface Arguments {
  readonly values: Readonly<Record<string, string>>;
  /** Of options that may be given more than once. */
  readonly lists: Readonly<Record<string, readonly string[]>>;
  readonly switches: ReadonlySet<string>;
  /** Words without a dash, in order; as many as the verb's table asks for. */
  readonly positionals: readonly string[];
  /** Words after `--`; undefined when there was no `--`. */
  readonly rest: readonly string[] | undefined;
}

export const HELP_OPTION: OptionRow = { short: 'h', help: 'show this help' };

/** @throws UsageError that names the first word that is wrong */
export function parseArguments(syntax: VerbSyntax, words: readonly string[]): Arguments {
  const table: OptionTable = { ...syntax.options, help: HELP_OPTION };
  const config = Object.fromEntries(Object.entries(table).map(([name, row]) => [name, {
    type: row.value === undefined ? 'boolean' as const : 'string' as const,
    ...(row.short === undefined ? {} : { short: row.short }),
  }]));
  const args = [...words];
  const { tokens } = parseArgs({ args, options: config, strict: false, allowPositionals: true, tokens: true });
  const values: Record<string, string> = {};
  const lists: Record<string, string[]> = {};
  const switches = new Set<string>();
  const positionals: string[] = [];
  const hint = `see: zazen ${syntax.name} --help`;
  for (const token of tokens) {
    if (token.kind === 'option-terminator') {
      if (syntax.rest === undefined) throw new UsageError(`${syntax.name} takes nothing after --`, hint);
      checkPositionals(syntax, switches, positionals);
      return { values, lists, switches, positionals, rest: words.slice(token.index + 1) };
    }
    if (token.kind === 'positional') {
      const row = syntax.positionals?.[positionals.length] ?? syntax.positionals?.at(-1);
      if (row === undefined || (positionals.length >= syntax.positionals!.length && row.many !== true)) {
        throw new UsageError(`${syntax.name} does not take the argument "${token.value}"`, hint);
      }
      positionals.push(token.value);
      continue;
    }
    const row = Object.hasOwn(table, token.name) ? table[token.name] : undefined;
    if (row === undefined) throw new UsageError(unknownOption(token.rawName, table), hint);
    if (row.value === undefined) {
      if (token.value !== undefined) throw new UsageError(`--${token.name} takes no value`, hint);
      switches.add(token.name);
    } else if (token.value === undefined || (!token.inlineValue && token.value.startsWith('--'))) {
      throw new UsageError(`--${token.name} needs a value: --${token.name} ${row.value}`, hint);
    } else if (row.isList === true) {
      (lists[token.name] ??= []).push(token.value);
    } else if (Object.hasOwn(values, token.name)) {
      throw new UsageError(`--${token.name} is given twice`, hint);
    } else {
      values[token.name] = token.value;
    }
  }
  checkPositionals(syntax, switches, positionals);
  return { values, lists, switches, positionals, rest: undefined };
}

/** Whether all are there; for the help none need be. */
function checkPositionals(syntax: VerbSyntax, switches: ReadonlySet<string>, given: readonly string[]): void {
  const missing = syntax.positionals?.find((row, i) => i >= given.length && row.optional !== true);
  if (missing === undefined || switches.has('help')) return;
  throw new UsageError(`${syntax.name} needs ${missing.name}`, `see: zazen ${syntax.name} --help`);
}

function unknownOption(given: string, table: OptionTable): string {
  const nearest = closest(given.replace(/^-+/, ''), Object.keys(table));
  return `unknown option ${given}${nearest === undefined ? '' : `; did you mean --${nearest}?`}`;
}

/** The candidate that is the fewest slips of the finger away, if that is few. */
export function closest(word: string, candidates: readonly string[]): string | undefined {
  const ranked = candidates.map((candidate) => ({ candidate, distance: editDistance(word, candidate) }))
    .toSorted((a, b) => a.distance - b.distance);
  const [best] = ranked;
  return best !== undefined && best.distance <= Math.max(1, Math.floor(word.length / 3)) ? best.candidate : undefined;
}

/** Letters left out, put in, replaced, or two of them exchanged. */
function editDistance(a: string, b: string): number {
  let before: number[] = [];
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const substituted = row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1);
      const isExchanged = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1];
      next.push(Math.min(substituted, row[j]! + 1, next[j - 1]! + 1, isExchanged ? before[j - 2]! + 1 : Infinity));
    }
    [before, row] = [row, next];
  }
  return row[b.length]!;
}

const HELP_COLUMN = 26;

export function verbHelp(syntax: VerbSyntax): string {
  const rows = Object.entries({ ...syntax.options, help: HELP_OPTION }).map(([name, row]) => {
    const short = row.short === undefined ? '    ' : `-${row.short}, `;
    const left = `  ${short}--${name}${row.value === undefined ? '' : ` ${row.value}`}`;
    const indent = `\n${' '.repeat(HELP_COLUMN + 2)}`;
    const gap = left.length < HELP_COLUMN ? ' '.repeat(HELP_COLUMN + 2 - left.length) : indent;
    return left + gap + row.help.replaceAll('\n', indent);
  });
  const details = syntax.details === undefined ? '' : `\n${syntax.details}\n`;
  const words = (syntax.positionals ?? []).map(({ name, optional, many }) => {
    const word = many === true ? `${name}...` : name;
    return optional === true ? ` [${word}]` : ` ${word}`;
  }).join('');
  return `usage: zazen ${syntax.name} [OPTION]...${words}${syntax.rest ?? ''}\n\n${syntax.summary}\n${details}\n`
    + `options:\n${rows.join('\n')}\n`;
}

/** A whole number from 1 on. */
export function parseCount(name: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  if (!/^[1-9]\d{0,5}$/.test(text)) throw new UsageError(`--${name} takes a whole number from 1 on, not "${text}"`);
  return Number(text);
}

/** One word of a shell command, so that it stays one word. */
export function shellQuote(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", String.raw`'\''`)}'`;
}
