import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { test } from 'node:test';
import fc from 'fast-check';
import { ZazenError } from '../base/errors.ts';
import { closest, parseArguments, shellQuote, verbHelp } from './arguments.ts';
import type { VerbSyntax } from './arguments.ts';
import type { FakeHostOptions } from './test-fake-host.ts';
import { runCli } from './test-io.ts';

const syntax: VerbSyntax = {
  name: 'verb', summary: 'Does it.', rest: ' [-- WORD...]',
  options: { size: { value: 'SIZE', short: 's', help: 'how much' }, json: { help: 'as JSON' } },
};

test('values, switches and the words after -- are told apart', () => {
  const args = parseArguments(syntax, ['--size=3', '--json', '--', '--json', 'x y']);
  assert.deepEqual(args.values, { size: '3' });
  assert.deepEqual([...args.switches], ['json']);
  assert.deepEqual(args.rest, ['--json', 'x y']);
  assert.deepEqual(parseArguments(syntax, ['-s', '4']).values, { size: '4' });
  assert.equal(parseArguments(syntax, []).rest, undefined);
});

test('whatever the words are, they are read or refused with a UsageError', () => {
  const word = fc.oneof(fc.string(), fc.constantFrom(
    '--size', '-s', '--json', '--', '-', '--size=', '--__proto__', '--constructor=1', '--no-json', '-sj', '-js'));
  fc.assert(fc.property(fc.array(word, { maxLength: 6 }), (words) => {
    try {
      const args = parseArguments(syntax, words);
      assert.ok(Object.keys(args.values).every((name) => name === 'size'));
    } catch (error) {
      assert.equal((error as { code?: string }).code, 'ZAZEN_USAGE');
    }
  }));
});

test('the help names every option', () => {
  const help = verbHelp(syntax);
  assert.match(help, /^usage: zazen verb \[OPTION\]\.\.\. \[-- WORD\.\.\.\]\n/);
  for (const part of ['-s, --size SIZE  ', '--json  ', '-h, --help  ']) assert.ok(help.includes(part), part);
});

test('a slip of the finger is recognised, another word is not', () => {
  assert.equal(closest('memroy', ['name', 'memory', 'json']), 'memory');
  assert.equal(closest('lsit', ['list', 'top', 'run']), 'list', 'two letters in the wrong order are one slip');
  assert.equal(closest('frobnicate', ['name', 'memory', 'json']), undefined);
});

test('a quoted word is one word to a shell', () => {
  const printable = fc.string({ minLength: 1, maxLength: 20 }).filter((text) => !text.includes('\0'));
  fc.assert(fc.property(fc.array(printable, { minLength: 1, maxLength: 5 }), (words) => {
    const said = execFileSync('sh', ['-c', `printf '%s\\0' ${words.map(shellQuote).join(' ')}`], { encoding: 'utf8' });
    assert.deepEqual(said.split('\0').slice(0, -1), words);
  }), { numRuns: 30 });
  assert.equal(shellQuote('uname'), 'uname');
});

const mistakes: readonly (readonly [words: string[], says: RegExp])[] = [
  [[], /no verb given; see: zazen --help/],
  [['rum'], /there is no verb "rum"; did you mean run\?/],
  [['--json'], /unknown option --json; options follow the verb/],
  [['guest'], /guest needs one of: fetch, build; see: zazen guest --help/],
  [['guest', 'fetch', '--flavour', 'mint'], /there is no flavour "mint"; give cloud or generic/],
  [['run', '--memroy', '1G'], /unknown option --memroy; did you mean --memory\?/],
  [['run', '-x'], /unknown option -x/],
  [['run', '--memory'], /--memory needs a value: --memory SIZE/],
  [['run', '--exec', '--json'], /--exec needs a value/],
  [['run', '--json=yes'], /--json takes no value/],
  [['run', '--name', 'a', '--name', 'b'], /--name is given twice/],
  [['run', 'vmlinuz'], /run does not take the argument "vmlinuz"/],
  [['run', '--exec', 'a', '--', 'b'], /either --exec or a command after --/],
  [['run', '--'], /no command after --/],
  [['run', '--vcpus', '0'], /--vcpus takes a whole number from 1 on, not "0"/],
  [['run', '--memory', 'much'], /memory cannot be "much"; give a size such as 400MiB/],
  [['run', '--memory', '-5'], /memory cannot be "-5"; give a size such as 400MiB/],
  [['run', '--memory', '1TiB'], /a guest cannot have 1 TiB of memory; give at most 15872MiB/],
  [['run', '--disk', 'a,b,c,d'], /disk "a,b,c,d": there is no format "b"/],
  [['list', '--host', ''], /--host takes a PID or the path of a control socket/],
  [['run', '--timeout', '-1'], /--timeout takes a number of seconds, not "-1"/],
  [['info', '--', 'x'], /info takes nothing after --/],
];

for (const [words, says] of mistakes) {
  test(`zazen ${words.join(' ')}: one line, exit status 2, no host`, async () => {
    const { status, out, err, hosts } = await runCli(words);
    assert.equal(status, 2);
    assert.match(err, /^zazen: [^\n]+\n$/);
    assert.match(err, says);
    assert.equal(hosts.hostOptions.length, 0);
    if (!words.includes('--json')) assert.equal(out, '');
    else assert.equal(JSON.parse(out).error.code, 'ZAZEN_USAGE');
  });
}

test('values that no host takes are wrong usage; what depends on the moment is an error', async () => {
  const refusal = (code: string): FakeHostOptions => ({ create: () => Promise.reject(new ZazenError(code, 'no')) });
  const statusOf = async (code: string): Promise<number> => (await runCli(['run', '--exec', 'x'], refusal(code))).status;
  for (const code of ['ZAZEN_SPEC_NAME', 'ZAZEN_SPEC_VCPUS', 'ZAZEN_DISK_SPEC', 'ZAZEN_MEMORY_SIZE']) assert.equal(await statusOf(code), 2, code);
  for (const code of ['ZAZEN_DISK_MISSING', 'ZAZEN_HOST_OUT_OF_MEMORY', 'ZAZEN_DOMAIN_NAME_TAKEN']) assert.equal(await statusOf(code), 1, code);
});

test('help and version need no host', async () => {
  for (const words of [['--help'], ['help'], ['-h']]) {
    assert.match((await runCli(words)).out, /run .*\n[^]*pause .*\n[^]*info .*\n.*guest fetch /);
  }
  for (const words of [['disk', '--help'], ['help', 'disk'], ['disk', '-h']]) {
    const { status, out } = await runCli(words);
    assert.equal(status, 0);
    assert.match(out, /^usage: zazen disk VERB .*\n\n +disk create +[^]*\n +disk info /);
    assert.doesNotMatch(out, /image/);
  }
  for (const words of [['run', '--help'], ['help', 'run'], ['run', '--json', '-h']]) {
    assert.match((await runCli(words)).out, /^usage: zazen run /);
  }
  assert.match((await runCli(['guest', 'fetch', '-h'])).out, /^usage: zazen guest fetch /);
  assert.match((await runCli(['--version'])).out, /^zazen \d+\.\d+\.\d+\n$/);
});
