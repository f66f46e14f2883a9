// The protocol, request by request, in scripts of packets.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Store } from './store.ts';
import { homes, TestClient } from './test-wire-client.ts';
import type { RequestName } from './test-wire-client.ts';

type Script = readonly (readonly [RequestName, string, string])[];

function play(client: TestClient, script: Script): void {
  for (const [name, payload, expected] of script) {
    assert.equal(client.ask(name, payload), expected, `${name} ${JSON.stringify(payload)}`);
  }
}

function guest(): { store: Store; client: TestClient } {
  const store = new Store();
  homes(store, 5, 6);
  return { store, client: new TestClient(store, { domainId: 5 }) };
}

test('nodes are written, read, listed and removed', () => {
  const { client } = guest();
  play(client, [
    ['READ', 'a\0', 'ENOENT'],
    ['WRITE', 'a/b/c\0value\0with nul', 'OK\0'],
    ['READ', 'a/b/c\0', 'value\0with nul'],
    ['READ', '/local/domain/5/a/b/c\0', 'value\0with nul'],
    ['READ', 'a/b\0', ''],
    ['WRITE', 'a/x\0', 'OK\0'],
    ['READ', 'a/x\0', ''],
    ['DIRECTORY', 'a\0', 'b\0x\0'],
    ['DIRECTORY', 'a/x\0', ''],
    ['MKDIR', 'a/b/c\0', 'OK\0'],
    ['READ', 'a/b/c\0', 'value\0with nul'],
    ['MKDIR', 'd/e\0', 'OK\0'],
    ['DIRECTORY', 'd\0', 'e\0'],
    ['RM', 'a/b\0', 'OK\0'],
    ['READ', 'a/b/c\0', 'ENOENT'],
    ['RM', 'a/b\0', 'OK\0'],
    ['RM', 'nowhere/b\0', 'ENOENT'],
    ['RM', '/\0', 'EINVAL'],
    ['DIRECTORY', 'a\0', 'x\0'],
  ]);
});

test('what is no path is refused', () => {
  const { client } = guest();
  const paths = ['', 'a//b', 'a/', '//', 'a b', 'ä', '@x', 'a\\b', `/${'x'.repeat(3072)}`, 'y'.repeat(2049)];
  for (const path of paths) assert.equal(client.ask('READ', `${path}\0`), 'EINVAL', path);
  for (const name of ['READ', 'MKDIR', 'RM', 'DIRECTORY', 'WRITE', 'WATCH', 'SET_PERMS'] as const) {
    assert.equal(client.ask(name, ''), 'EINVAL', name);
    assert.equal(client.ask(name, 'unclosed'), 'EINVAL', name);
  }
  assert.equal(client.ask('READ', 'a\0b\0'), 'EINVAL');
  assert.equal(client.ask('READ', 'y'.repeat(2048) + '\0'), 'ENOENT');
});

test('permissions decide, and absence is told only to those who could see', () => {
  const { store, client } = guest();
  const other = new TestClient(store, { domainId: 6 });
  play(client, [
    ['WRITE', 'p\0v', 'OK\0'],
    ['GET_PERMS', 'p\0', 'n5\0'],
    ['WRITE', '/local/domain/6/x\0', 'EACCES'],
    ['READ', '/local/domain/6/x\0', 'EACCES'],
    ['WRITE', '/tool\0v', 'EACCES'],
    ['DIRECTORY', '/\0', 'EACCES'],
  ]);
  assert.equal(other.ask('READ', '/local/domain/5/p\0'), 'EACCES');
  play(client, [['SET_PERMS', 'p\0n5\0r6\0', 'OK\0'], ['GET_PERMS', 'p\0', 'n5\0r6\0']]);
  play(other, [
    ['READ', '/local/domain/5/p\0', 'v'],
    ['WRITE', '/local/domain/5/p\0w', 'EACCES'],
    ['SET_PERMS', '/local/domain/5/p\0n6\0', 'EACCES'],
    ['READ', '/local/domain/5/p/q\0', 'ENOENT'],
  ]);
  play(client, [
    ['SET_PERMS', 'p\0n5\0w6\0', 'OK\0'],
    ['SET_PERMS', 'p\0n6\0', 'EPERM'],
    ['SET_PERMS', 'p\0', 'EINVAL'],
    ['SET_PERMS', 'p\0x5\0', 'EINVAL'],
    ['SET_PERMS', 'p\0r\0', 'EINVAL'],
    ['SET_PERMS', 'p\0r70000\0', 'EINVAL'],
    ['SET_PERMS', 'none\0n5\0', 'ENOENT'],
    ['SET_PERMS', 'p\0n5\0r1\0r2\0r3\0r4\0r7\0', 'ENOSPC'],
  ]);
  play(other, [
    ['READ', '/local/domain/5/p\0', 'EACCES'],
    ['WRITE', '/local/domain/5/p\0w', 'OK\0'],
    ['WRITE', '/local/domain/5/p/mine\0m', 'OK\0'],
  ]);
  assert.deepEqual(store.getPerms('/local/domain/5/p/mine'), ['n6', 'w6']);
  play(client, [['SET_PERMS', 'p\0b5\0', 'OK\0']]);
  play(other, [['WRITE', '/local/domain/5/p\0x', 'OK\0'], ['READ', '/local/domain/5/p\0', 'x']]);
});

test('SET_TARGET gives a domain what its target has', () => {
  const { store, client } = guest();
  const toolstack = new TestClient(store, { domainId: 0, privileged: true });
  assert.equal(client.ask('SET_TARGET', '5\x006\0'), 'EACCES');
  assert.equal(client.ask('READ', '/local/domain/6\0'), 'EACCES');
  assert.equal(toolstack.ask('SET_TARGET', '5\x009\0'), 'ENOENT');
  assert.equal(toolstack.ask('SET_TARGET', '5\x006\0'), 'OK\0');
  assert.equal(client.ask('WRITE', '/local/domain/6/x\0v'), 'OK\0');
  store.write('/for6', 'v');
  store.setPerms('/for6', ['n0', 'r6']);
  assert.equal(client.ask('READ', '/for6\0'), 'v');
  store.domainReleased(6);
  assert.equal(client.ask('READ', '/local/domain/6\0'), 'EACCES');
});

test('watches fire first at once, then for changes at and below, once each', () => {
  const { client } = guest();
  play(client, [
    ['WATCH', 'w\0t1\0', 'OK\0'],
    ['WATCH', '/local/domain/5/w\0t2\0', 'OK\0'],
    ['WATCH', 'w\0t1\0', 'EEXIST'],
    ['WATCH', '/local/domain/5/w\0t1\0', 'EEXIST'],
  ]);
  assert.deepEqual(client.takeEvents(), ['w t1', '/local/domain/5/w t2']);
  play(client, [['WRITE', 'w/x\0v', 'OK\0'], ['WRITE', 'wx\0v', 'OK\0'], ['READ', 'w/x\0', 'v']]);
  assert.deepEqual(client.takeEvents(), ['w/x t1', '/local/domain/5/w/x t2']);
  play(client, [
    ['UNWATCH', '/local/domain/5/w\0t2\0', 'OK\0'],
    ['UNWATCH', 'w\0t2\0', 'ENOENT'],
    ['MKDIR', 'w/x\0', 'OK\0'],
    ['MKDIR', 'w/y\0', 'OK\0'],
    ['SET_PERMS', 'w/y\0r5\0', 'OK\0'],
    ['RM', 'w/y\0', 'OK\0'],
    ['RM', 'w/y\0', 'OK\0'],
  ]);
  assert.deepEqual(client.takeEvents(), ['w/y t1', 'w/y t1', 'w/y t1']);
  play(client, [['RESET_WATCHES', '\0', 'OK\0'], ['WRITE', 'w\0', 'OK\0']]);
  assert.deepEqual(client.takeEvents(), []);
});

test('a watch below what is removed hears of its own path', () => {
  const { client } = guest();
  client.ask('WRITE', 'a/b/c\0v');
  for (const path of ['a', 'a/b/c', 'a/b/none']) client.ask('WATCH', `${path}\0t\0`);
  client.takeEvents();
  client.ask('RM', 'a\0');
  assert.deepEqual(client.takeEvents(), ['a t', 'a/b/c t']);
});

test('a watch with a depth', () => {
  const { client } = guest();
  play(client, [
    ['WATCH', 'd\x000\x000\0', 'OK\0'],
    ['WATCH', 'd\x001\x001\0', 'OK\0'],
    ['WATCH', 'd\0x\0one\0', 'EINVAL'],
    ['WATCH', 'd\0x\x001\0more\0', 'EINVAL'],
  ]);
  client.takeEvents();
  client.ask('WRITE', 'd\0v');
  assert.deepEqual(client.takeEvents(), ['d 0', 'd 1']);
  client.ask('WRITE', 'd/e\0v');
  assert.deepEqual(client.takeEvents(), ['d/e 1']);
  client.ask('WRITE', 'd/e/f\0v');
  assert.deepEqual(client.takeEvents(), []);
});

test('no one is told of what it may not read', () => {
  const { store, client } = guest();
  const other = new TestClient(store, { domainId: 6 });
  other.ask('WATCH', '/local/domain/5\0t\0');
  other.takeEvents();
  client.ask('WRITE', 'secret\0v');
  assert.deepEqual(other.takeEvents(), []);
  client.ask('SET_PERMS', 'secret\0n5\0r6\0');
  client.ask('WRITE', 'secret\0w');
  assert.deepEqual(other.takeEvents(), ['/local/domain/5/secret t', '/local/domain/5/secret t']);
  client.ask('SET_PERMS', 'secret\0n5\0');
  assert.deepEqual(other.takeEvents(), ['/local/domain/5/secret t'], 'the loss itself is told');
  client.ask('WRITE', 'secret\0x');
  assert.deepEqual(other.takeEvents(), []);
});

test('special watches tell of domains to those who may know', () => {
  const { store, client } = guest();
  const toolstack = new TestClient(store, { domainId: 0, privileged: true });
  for (const one of [client, toolstack]) {
    play(one, [['WATCH', '@introduceDomain\0i\0', 'OK\0'], ['WATCH', '@releaseDomain\0r\0', 'OK\0']]);
    assert.deepEqual(one.takeEvents(), ['@introduceDomain i', '@releaseDomain r']);
  }
  toolstack.ask('WATCH', '@releaseDomain\0d\x001\0');
  toolstack.ask('WATCH', '@releaseDomain/7\0only7\x000\0');
  toolstack.takeEvents();
  store.domainIntroduced(7);
  store.domainIntroduced(8);
  assert.deepEqual(toolstack.takeEvents(), ['@introduceDomain i', '@introduceDomain i']);
  store.domainShutdown(8);
  store.domainShutdown(8);
  assert.deepEqual(toolstack.takeEvents(), ['@releaseDomain r', '@releaseDomain/8 d']);
  play(toolstack, [['RESUME', '8\0', 'OK\0'], ['RELEASE', '7\0', 'OK\0'], ['RELEASE', '7\0', 'ENOENT']]);
  assert.deepEqual(toolstack.takeEvents(), ['@releaseDomain r', '@releaseDomain/7 d', '@releaseDomain/7 only7']);
  store.domainShutdown(8);
  assert.deepEqual(toolstack.takeEvents(), ['@releaseDomain r', '@releaseDomain/8 d']);
  assert.deepEqual(client.takeEvents(), []);
  play(toolstack, [
    ['GET_PERMS', '@releaseDomain\0', 'n0\0'],
    ['SET_PERMS', '@releaseDomain\0n0\0r5\0', 'OK\0'],
    ['SET_PERMS', '@other\0n0\0', 'ENOENT'],
  ]);
  assert.equal(client.ask('SET_PERMS', '@releaseDomain\0b0\0'), 'EACCES');
  store.domainShutdown(6);
  assert.deepEqual(client.takeEvents(), ['@releaseDomain r']);
});

test('transactions: isolation, commit, conflict, abort', () => {
  const { client } = guest();
  client.ask('WATCH', 'x\0t\0');
  client.takeEvents();
  const tx = client.begin();
  assert.equal(client.ask('WRITE', 'x\x001', tx), 'OK\0');
  assert.equal(client.ask('READ', 'x\0', tx), '1');
  assert.equal(client.ask('READ', 'x\0'), 'ENOENT');
  assert.deepEqual(client.takeEvents(), []);
  assert.equal(client.ask('TRANSACTION_END', 'T\0', tx), 'OK\0');
  assert.deepEqual(client.takeEvents(), ['x t']);
  assert.equal(client.ask('READ', 'x\0'), '1');

  const loser = client.begin();
  assert.equal(client.ask('READ', 'x\0', loser), '1');
  client.ask('WRITE', 'y\x001', loser);
  client.ask('WRITE', 'x\x002');
  assert.equal(client.ask('READ', 'x\0', loser), '1', 'it sees the store as it was');
  assert.equal(client.ask('TRANSACTION_END', 'T\0', loser), 'EAGAIN');
  assert.equal(client.ask('READ', 'y\0'), 'ENOENT');
  assert.equal(client.ask('READ', 'x\0', loser), 'ENOENT', 'it is over');

  const dropped = client.begin();
  client.ask('RM', 'x\0', dropped);
  assert.equal(client.ask('TRANSACTION_END', '?\0', dropped), 'EINVAL');
  assert.equal(client.ask('TRANSACTION_START', '\0', dropped), 'EBUSY');
  assert.equal(client.ask('TRANSACTION_END', 'F\0', dropped), 'OK\0');
  assert.equal(client.ask('READ', 'x\0'), '2');
  assert.equal(client.ask('TRANSACTION_END', 'T\0', 12345), 'ENOENT');
  assert.equal(client.ask('TRANSACTION_END', 'T\0'), 'ENOENT');
});

test('transactions that touch different nodes merge, also under one parent', () => {
  const { client } = guest();
  client.ask('MKDIR', 'device\0');
  const [a, b] = [client.begin(), client.begin()];
  client.ask('WRITE', 'device/vif/0\0a', a);
  client.ask('WRITE', 'device/vbd/0\0b', b);
  assert.equal(client.ask('TRANSACTION_END', 'T\0', a), 'OK\0');
  assert.equal(client.ask('TRANSACTION_END', 'T\0', b), 'OK\0');
  assert.equal(client.ask('DIRECTORY', 'device\0'), 'vif\0vbd\0');

  const lister = client.begin();
  client.ask('DIRECTORY', 'device\0', lister);
  client.ask('WRITE', 'seen\x002', lister);
  client.ask('WRITE', 'device/vkbd\0');
  assert.equal(client.ask('TRANSACTION_END', 'T\0', lister), 'EAGAIN', 'a list that it read has changed');

  const loser = client.begin();
  client.ask('DIRECTORY', 'device\0', loser);
  client.ask('WRITE', 'seen\x003', loser);
  client.ask('RM', 'device/vkbd\0');
  assert.equal(client.ask('TRANSACTION_END', 'T\0', loser), 'EAGAIN', 'the list has lost an entry');

  const remover = client.begin();
  client.ask('RM', 'device\0', remover);
  client.ask('WRITE', 'device/vif/0\0new');
  assert.equal(client.ask('TRANSACTION_END', 'T\0', remover), 'EAGAIN', 'something below what it removed has changed');
});

test('quotas', () => {
  const store = new Store({ quota: { 'nodes': 10, 'watches': 3, 'transactions': 2, 'transaction-nodes': 8 } });
  homes(store, 5);
  const client = new TestClient(store, { domainId: 5 });
  for (let i = 0; i < 9; i++) assert.equal(client.ask('WRITE', `n${i}\0`), 'OK\0');
  assert.equal(client.ask('WRITE', 'n9\0'), 'ENOSPC');
  assert.equal(client.ask('MKDIR', 'n9\0'), 'ENOSPC');
  assert.equal(store.ownedNodes(5), 10);
  client.ask('RM', 'n8\0');
  assert.equal(client.ask('WRITE', 'n8/deeper\0'), 'ENOSPC', 'two nodes, room for one');
  assert.equal(client.ask('READ', 'n8\0'), 'ENOENT', 'nothing half done');
  const tx = client.begin();
  client.ask('WRITE', 'n8\0', tx);
  assert.equal(client.ask('WRITE', 'n9\0', tx), 'ENOSPC');
  client.ask('WRITE', 'other\0');
  assert.equal(client.ask('TRANSACTION_END', 'T\0', tx), 'ENOSPC', 'the room is gone by now');
  const [a] = [client.begin(), client.begin()];
  assert.equal(client.ask('TRANSACTION_START', '\0'), 'ENOSPC');
  const touches = Array.from({ length: 9 }, (_, i) => client.ask('READ', `n${i % 8}/x${i}\0`, a));
  assert.equal(touches.at(-1), 'ENOSPC');
  for (let i = 0; i < 3; i++) client.ask('WATCH', `w${i}\0t\0`);
  assert.equal(client.ask('WATCH', 'w3\0t\0'), 'E2BIG');
  assert.equal(client.ask('WRITE', `n0\0${'v'.repeat(2049)}`), 'ENOSPC');
  assert.equal(client.ask('WRITE', `n0\0${'v'.repeat(2048)}`), 'OK\0');
  store.write('/local/domain/5/by-toolstack/a', '');
  assert.deepEqual(store.audit(), []);
});

test('what open transactions hold is bounded', () => {
  const store = new Store({ quota: { 'transaction-bytes': 10000 } });
  homes(store, 5);
  const client = new TestClient(store, { domainId: 5 });
  const [a, b] = [client.begin(), client.begin()];
  const write = (tx: number) => client.ask('WRITE', `n\0${'v'.repeat(2000)}`, tx);
  assert.deepEqual([write(a), write(b), write(a), write(b), write(a)], ['OK\0', 'OK\0', 'OK\0', 'OK\0', 'ENOSPC']);
  client.ask('TRANSACTION_END', 'F\0', b);
  assert.equal(write(a), 'OK\0');
});

test('DIRECTORY_PART gives a long list in pieces', () => {
  const { store, client } = guest();
  const names = Array.from({ length: 500 }, (_, i) => `a-long-name-for-a-child-${i}`);
  for (const name of names) store.write(`/local/domain/5/big/${name}`, '');
  store.setPerms('/local/domain/5/big', ['r0']);
  assert.equal(client.ask('DIRECTORY', 'big\0'), 'E2BIG');
  let list = '';
  let generation: string | undefined;
  for (let complete = false; !complete;) {
    const reply = client.ask('DIRECTORY_PART', `big\0${list.length}\0`);
    const cut = reply.indexOf('\0');
    generation ??= reply.slice(0, cut);
    assert.equal(reply.slice(0, cut), generation);
    const part = reply.slice(cut + 1);
    complete = part === '' ? assert.fail('no progress') : part.endsWith('\0\0');
    list += complete ? part.slice(0, -1) : part;
  }
  assert.deepEqual(list.slice(0, -1).split('\0'), names);
  store.write('/local/domain/5/big/one-more', '');
  assert.notEqual(client.ask('DIRECTORY_PART', 'big\x000\0').split('\0')[0], generation);
  assert.equal(client.ask('DIRECTORY_PART', 'big\x0099999\0').split('\0').slice(1).join('|'), '|');
});

test('domains: introduce, release, features, quotas, control', () => {
  const calls: unknown[] = [];
  const store = new Store({ hooks: {
    introduce: (...given) => calls.push(given) > 0 && given[0] !== 9,
    release: (id) => calls.push(id),
  } });
  const guestClient = new TestClient(store, { domainId: 5 });
  const toolstack = new TestClient(store, { domainId: 0, privileged: true });
  const privilegedOnly: Script = [
    ['INTRODUCE', '5\x00100\x003\0', 'EACCES'], ['RELEASE', '5\0', 'EACCES'], ['RESUME', '5\0', 'EACCES'],
    ['CONTROL', 'help\0', 'EACCES'], ['SET_FEATURE', '5\x000\0', 'EACCES'], ['GET_FEATURE', '6\0', 'EACCES'],
    ['GET_QUOTA', '', 'EACCES'], ['SET_QUOTA', 'nodes\x000\0', 'EACCES'],
  ];
  play(guestClient, privilegedOnly);
  play(toolstack, [
    ['SET_FEATURE', '5\x003\0', 'OK\0'],
    ['SET_FEATURE', '5\x0064\0', 'EINVAL'],
    ['IS_DOMAIN_INTRODUCED', '5\0', 'F\0'],
    ['INTRODUCE', '5\x00100\x003\0', 'OK\0'],
    ['INTRODUCE', '9\x00100\x003\0', 'EINVAL'],
    ['INTRODUCE', '0\x00100\x003\0', 'EINVAL'],
    ['INTRODUCE', '5\0', 'EINVAL'],
    ['IS_DOMAIN_INTRODUCED', '5\0', 'T\0'],
    ['SET_FEATURE', '5\x001\0', 'EBUSY'],
    ['GET_FEATURE', '', '7\0'],
    ['GET_FEATURE', '5\0', '3\0'],
    ['GET_QUOTA', 'watches\0', '128\0'],
    ['SET_QUOTA', '5\0watches\x001\0', 'OK\0'],
    ['SET_QUOTA', 'nodes\x0077\0', 'OK\0'],
    ['GET_QUOTA', '5\0watches\0', '1\0'],
    ['GET_QUOTA', '5\0nodes\0', '77\0'],
    ['GET_QUOTA', '6\0watches\0', '128\0'],
    ['GET_QUOTA', 'nonsense\0', 'EINVAL'],
    ['SET_QUOTA', '5\0watches\0-1\0', 'EINVAL'],
    ['CONTROL', 'help\0', 'Supported commands:\ncheck\nhelp\0'],
    ['CONTROL', 'check\0', 'OK\0'],
    ['CONTROL', 'nonsense\0', 'EINVAL'],
  ]);
  assert.match(toolstack.ask('GET_QUOTA', ''), /^nodes watches .*node-size .*\0$/);
  play(guestClient, [
    ['GET_FEATURE', '', '3\0'],
    ['WATCH', 'a\0t\x001\0', 'EINVAL'],
    ['WATCH', 'a\0t\0', 'OK\0'],
    ['WATCH', 'b\0t\0', 'E2BIG'],
    ['GET_DOMAIN_PATH', '17\0', '/local/domain/17\0'],
    ['GET_DOMAIN_PATH', '32752\0', '/local/domain/5\0'],
    ['GET_DOMAIN_PATH', 'x\0', 'EINVAL'],
    ['IS_DOMAIN_INTRODUCED', '32752\0', 'T\0'],
    ['WATCH_EVENT', 'a\0t\0', 'ENOSYS'],
    ['ERROR', 'EINVAL\0', 'ENOSYS'],
  ]);
  play(toolstack, [['RELEASE', '5\0', 'OK\0'], ['IS_DOMAIN_INTRODUCED', '5\0', 'F\0'], ['GET_FEATURE', '5\0', '7\0']]);
  assert.deepEqual(calls, [[5, 100, 3], [9, 100, 3], 5]);
});
