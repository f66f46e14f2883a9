import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { ZazenError } from '../base/errors.ts';
import type { DomainState } from '../host/types.ts';
import { COMMANDS, assertLegal, parseCommand } from './command.ts';
import type { Command, CommandName } from './command.ts';

const NAMES = Object.keys(COMMANDS) as CommandName[];

const GOOD: readonly Command[] = [
  { command: 'list' },
  { command: 'create', spec: {} },
  {
    command: 'create', policy: { onReboot: 'preserve' },
    spec: { name: 'a', memory: '1GiB', vcpus: 2, kernel: '/k', initrd: 'none', cmdline: 'x', paused: true, uuid: 'u' },
  },
  { command: 'create', spec: { memory: 4096, kernel: 'debian-generic' } },
  { command: 'pause', domain: 'web' },
  { command: 'shutdown', domain: '7', wait: true },
  { command: 'checkpoints' },
  { command: 'rollback', domain: 'web', checkpoint: 3 },
  { command: 'fork', domain: 'web', count: 10, name: 'kid', paused: false },
  { command: 'save', domain: 'web', path: '/tmp/web.core', destroy: true },
  { command: 'save', domain: 'web', path: '/tmp/web-2.core', parent: '/tmp/web.core' },
  { command: 'restore', path: '/x', name: 'again', paused: true },
  { command: 'events', history: true },
  { command: 'store-write', path: '/a', value: '' },
  { command: 'store-watch', path: '@releaseDomain', depth: 0 },
];

for (const command of GOOD) {
  test(`taken as it is: ${JSON.stringify(command)}`, () => {
    assert.deepEqual(parseCommand(JSON.parse(JSON.stringify(command))), command);
  });
}

const BAD: readonly (readonly [value: unknown, says: RegExp])[] = [
  [null, /must be an object/],
  [[], /must be an object/],
  [{}, /name must be a string/],
  [{ command: 'frobnicate' }, /there is no command "frobnicate"/],
  [{ command: 'constructor' }, /there is no command/],
  [{ command: 'pause' }, /pause's domain must be a string/],
  [{ command: 'pause', domain: '' }, /is empty/],
  [{ command: 'pause', domain: 'x'.repeat(65) }, /longer than 64/],
  [{ command: 'pause', domain: 'a\0' }, /zero byte/],
  [{ command: 'pause', domain: 'a', force: true }, /pause has no field "force"/],
  [JSON.parse('{"command":"list","__proto__":{}}'), /has no field "__proto__"/],
  [{ command: 'create' }, /create's spec must be an object/],
  [{ command: 'create', spec: { exec: 'ls' } }, /spec has no field "exec"/],
  [{ command: 'create', spec: { kernel: 'some/where' } }, /debian, debian-generic or an absolute path/],
  [{ command: 'create', spec: { memory: -1 } }, /whole number/],
  [{ command: 'create', spec: {}, policy: { onCrash: 'ignore' } }, /must be destroy, restart, preserve/],
  [{ command: 'dump-core', domain: 'a', path: 'here' }, /must be an absolute path/],
  [{ command: 'save', domain: 'a', path: '/a', parent: 'here' }, /must be an absolute path/],
  [{ command: 'suspend', domain: 'a', via: 'mail' }, /must be auto, event-channel, store, transparent/],
  [{ command: 'suspend', domain: 'a', timeoutMillis: 2 ** 31 }, /whole number/],
  [{ command: 'fork', domain: 'a', count: 1.5 }, /whole number from 1/],
  [{ command: 'store-write', path: '/a', value: 'x'.repeat(4097) }, /longer than 4096/],
];

for (const [value, says] of BAD) {
  test(`refused: ${JSON.stringify(value)?.slice(0, 60)}`, () => {
    assert.throws(() => parseCommand(value), (error) => {
      assert.ok(error instanceof ZazenError);
      assert.match(error.code, /^ZAZEN_COMMAND_(INVALID|UNKNOWN)$/);
      assert.match(error.message, says);
      return true;
    });
  });
}

test('whatever JSON comes, it is a command or a ZazenError, and a command is taken again', () => {
  const field = fc.constantFrom('domain', 'spec', 'policy', 'path', 'value', 'count', 'wait', 'checkpoint', 'x');
  const near = fc.tuple(fc.constantFrom(...NAMES), fc.dictionary(field, fc.jsonValue({ maxDepth: 2 })))
    .map(([command, rest]) => ({ command, ...rest }));
  let taken = 0;
  fc.assert(fc.property(fc.oneof(fc.jsonValue(), near), (value) => {
    try {
      const command = parseCommand(value);
      taken++;
      assert.deepEqual(parseCommand(command), command);
    } catch (error) {
      assert.ok(error instanceof ZazenError, String(error));
    }
  }), { numRuns: 1000 });
  assert.ok(taken > 0);
});

test('a command that names a domain says in which states it is legal, and the others do not', () => {
  const states: readonly DomainState[] = ['running', 'paused', 'suspended', 'shutdown', 'destroyed'];
  for (const name of NAMES) {
    const takesDomain = 'domain' in COMMANDS[name].arguments && name !== 'checkpoints';
    assert.equal(COMMANDS[name].states !== undefined, takesDomain, name);
    for (const state of takesDomain ? states : []) {
      const legal = COMMANDS[name].states!.includes(state);
      const judge = (): void => assertLegal(name, { name: 'web', state });
      if (legal) judge();
      else assert.throws(judge, { code: 'ZAZEN_DOMAIN_STATE' });
    }
  }
  assert.throws(() => assertLegal('shutdown', { name: 'web', state: 'paused' }),
    { message: 'domain web is paused; shutdown takes one that is running', hint: 'unpause it first, or destroy it' });
  assert.throws(() => assertLegal('pause', { name: 'web', state: 'suspended' }),
    { message: 'domain web is suspended; pause takes one that is running or paused', hint: 'resume it first, or destroy it' });
});
