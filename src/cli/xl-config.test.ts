import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { readDomainConfig } from './domain-config.ts';
import { parseConfig } from './xl-config.ts';
import type { ConfigValue } from './xl-config.ts';

const valuesOf = (text: string): Record<string, ConfigValue> =>
  Object.fromEntries([...parseConfig(text, 'f')].map(([key, { value }]) => [key, value]));

test('the syntax of xl.cfg: strings, numbers, lists, comments, separators', () => {
  assert.deepEqual(valuesOf(`# a guest
name = "web"; memory=512 ;; vcpus	= 0x10 # sixteen
octal = 0777
nested = [ [ 1, 'two' ], # comment in a list
  "three",
]
empty = [ ]\r
quoted = 'it''s' # no: two strings are not one
`.replace("'it''s' # no: two strings are not one", String.raw`'it\'s \x41\102\n'`)), {
    name: 'web', memory: 512, vcpus: 16, octal: 511, nested: [[1, 'two'], 'three'], empty: [], quoted: "it's AB\n",
  });
  assert.deepEqual(valuesOf(''), {});
  assert.deepEqual(valuesOf('a=1\na=2'), { a: 2 });
  assert.deepEqual(valuesOf('a="x"\na+="y"\nb=[1]\nb+=[2]\nc+="z"'), { a: 'xy', b: [1, 2], c: 'z' });
  // Names that objects have anyhow are keys as any other.
  assert.equal(parseConfig('constructor=1\n__proto__=2', 'f').size, 2);
});

const WRONG: readonly (readonly [text: string, says: RegExp])[] = [
  ['a', /f, line 1: after a comes =/],
  ['a=1\n\nb=', /line 3: a value is expected/],
  ['a=web', /a value is expected: a string in quotes/],
  ['a=1 b=2', /after the value of a comes a new line or ;/],
  ['a="x\n"', /line 1: a string is not closed on its line/],
  ['a=[1 2]', /separated by commas/],
  ['a=[1,\n\n', /line 3: a list is not closed/],
  ['a=08', /"08" is no number/],
  ['a=0x', /"0x" is no number/],
  ['a=99999999999999999999', /is no number/],
  [String.raw`a="\q"`, /there is no escape \\q/],
  ['a=1\na+="x"', /\+= cannot add this/],
  [`a=${'['.repeat(100)}`, /nested too deeply/],
  ['=1', /a key is expected/],
  [`a="${'x'.repeat(2 ** 20)}"`, /too long/],
];

for (const [text, says] of WRONG) {
  test(`refused: ${JSON.stringify(text).slice(0, 40)}`, () => {
    assert.throws(() => parseConfig(text, 'f'), { code: 'ZAZEN_CONFIG_SYNTAX', message: says });
  });
}

/** As a careful person writes it. */
function print(value: ConfigValue): string {
  if (typeof value === 'number') return String(value);
  if (Array.isArray(value)) return `[ ${value.map(print).join(', ')} ]`;
  return `"${(value as string).replaceAll(/[\\"]/g, String.raw`\$&`).replaceAll('\n', String.raw`\n`)}"`;
}

test('what is printed is read as it was, and whatever else comes is read or refused', () => {
  const { value } = fc.letrec<{ value: ConfigValue; list: ConfigValue[] }>((tie) => ({
    value: fc.oneof({ maxDepth: 4 }, fc.nat(), fc.string(), tie('list')),
    list: fc.array(tie('value'), { maxLength: 4 }),
  }));
  const key = fc.stringMatching(/^[a-z_][a-z0-9_]{0,10}$/);
  const keys = fc.dictionary(key, value, { noNullPrototype: true });
  fc.assert(fc.property(keys, fc.constantFrom('\n', ';', ' # x\n'), (entries, separator) => {
    const text = Object.entries(entries).map(([name, it]) => `${name} = ${print(it)}`).join(separator);
    assert.deepEqual(valuesOf(text), entries);
  }));
  const part = fc.constantFrom('a', '=', '+=', '[', ']', ',', ';', '\n', '"', "'", '\\', '0x', '1', '#', ' ');
  const near = fc.array(part, { maxLength: 30 }).map((parts) => parts.join(''));
  fc.assert(fc.property(fc.oneof(fc.string(), near), (text) => {
    try {
      parseConfig(text, 'f');
    } catch (error) {
      assert.equal((error as { code?: string }).code, 'ZAZEN_CONFIG_SYNTAX', String(error));
    }
  }), { numRuns: 2000 });
});

test('the keys become a spec', () => {
  const { spec, policy, warnings } = readDomainConfig(`
name = "web"; type = "pvh"; memory = 0x200; maxmem = 512; vcpus = 2; uuid = "u"
cpu_weight = 512; cap = 75
kernel = "boot/Image"; ramdisk = "/boot/initrd"; root = "/dev/xvda ro"; extra = "quiet"
on_poweroff = "preserve"; on_crash = "restart"; disk = []; vif = [ ]`, 'web.cfg', '/home/me');
  assert.deepEqual(spec, {
    name: 'web', uuid: 'u', memory: '512MiB', vcpus: 2, kernel: '/home/me/boot/Image', initrd: '/boot/initrd',
    cmdline: 'root=/dev/xvda ro quiet', cpuWeight: 512, cpuCapPercent: 75,
  });
  assert.deepEqual(policy, { onPoweroff: 'preserve', onCrash: 'restart' });
  assert.deepEqual(warnings, []);
  assert.deepEqual(readDomainConfig('', 'f', '/').spec, {});
  for (const key of ['type', 'builder']) assert.deepEqual(readDomainConfig(`${key}="hvm"`, 'f', '/').spec, { type: 'hvm' });
  assert.deepEqual(readDomainConfig('kernel="/k"', 'f', '/').spec, { kernel: '/k', initrd: 'none' });
  assert.deepEqual(readDomainConfig('kernel="debian-generic"', 'f', '/').spec, { kernel: 'debian-generic' });
  assert.deepEqual(readDomainConfig('cmdline="c"\nextra="x"', 'f', '/'), {
    spec: { cmdline: 'c' }, policy: {}, warnings: ['f, line 2: extra: cmdline is there, so it is left out'],
  });
  assert.deepEqual(readDomainConfig('memory="256"\nmaxmem=512\ncpus="0-3"', 'f', '/'), {
    spec: { memory: '256MiB' }, policy: {},
    warnings: [
      'f, line 3: cpus: Zazen does not know this key; it is left out',
      'f, line 2: maxmem: guests do not grow yet; the guest gets memory',
    ],
  });
});

const UNSUPPORTED: readonly (readonly [text: string, says: RegExp])[] = [
  ['vfb = [ "vnc=1" ]', /f, line 1: vfb: framebuffers are not supported/],
  ['\nvif="bridge=a"', /line 2: vif: a list of strings/],
  ['type="vax"', /there is no type "vax"/],
  ['memory="lots"', /memory: a number is expected/],
  ['name=5', /name: a string in quotes is expected/],
  ['memory=512\nmaxmem=256', /maxmem: it is less than memory/],
  ['on_crash="coredump-destroy"', /on_crash: there is no action "coredump-destroy"/],
];

for (const [text, says] of UNSUPPORTED) {
  test(`not supported: ${JSON.stringify(text)}`, () => {
    assert.throws(() => readDomainConfig(text, 'f', '/'), { code: 'ZAZEN_CONFIG_VALUE', message: says });
  });
}

test('network cards of a configuration', () => {
  const { spec } = readDomainConfig('vif = [ "", "mac=00:16:3e:01:02:03,bridge=blue" ]', 'f', '/');
  assert.deepEqual(spec.nics, [{}, { mac: '00:16:3e:01:02:03', network: 'blue' }]);
});
