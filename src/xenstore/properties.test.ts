// Properties over random histories: committed transactions are equal to some serial order, permissions are what the
// list says, quotas hold, and no bytes make the store throw or lose count.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { XSD_SOCKMSG, XS_TYPE } from '../abi/xenstore-wire.ts';
import { stringToBytes } from './bytes.ts';
import { message } from './connection.ts';
import { accessOf } from './permissions.ts';
import { Store } from './store.ts';
import { homes, TestClient } from './test-wire-client.ts';

// -- Serialisability ---------------------------------------------------------------------------------------------

type Model = Map<string, string>;

interface Operation {
  readonly type: 'READ' | 'WRITE' | 'MKDIR' | 'RM' | 'DIRECTORY';
  readonly path: string;
  readonly value: string;
}

const names = ['a', 'b'];
const paths = names.flatMap((x) => [`/${x}`, ...names.flatMap((y) => [`/${x}/${y}`, `/${x}/${y}/z`])]);
const parentOf = (path: string) => path.slice(0, path.lastIndexOf('/'));

const operation = fc.record<Operation>({
  type: fc.constantFrom('READ', 'WRITE', 'MKDIR', 'RM', 'DIRECTORY'),
  path: fc.constantFrom(...paths),
  value: fc.constantFrom('1', '2', '3'),
});

/** A store of one thread, as simple as can be: '' is the root, every other path has its parent in the map. */
function modelAnswer(model: Model, { type, path, value }: Operation): string {
  const make = (at: string) => {
    if (model.has(at)) return;
    make(parentOf(at));
    model.set(at, '');
  };
  switch (type) {
    case 'READ': return model.get(path) ?? 'ENOENT';
    case 'DIRECTORY': {
      if (!model.has(path)) return 'ENOENT';
      const below = [...model.keys()].filter((at) => at !== '' && parentOf(at) === path);
      return below.map((at) => at.slice(path.length + 1)).toSorted().join(' ');
    }
    case 'WRITE':
      make(path);
      model.set(path, value);
      return 'OK';
    case 'MKDIR':
      make(path);
      return 'OK';
    case 'RM': {
      if (!model.has(parentOf(path))) return 'ENOENT';
      for (const at of [...model.keys()]) if (at === path || at.startsWith(`${path}/`)) model.delete(at);
      return 'OK';
    }
  }
}

function storeAnswer(client: TestClient, { type, path, value }: Operation, transactionId: number): string {
  const reply = client.ask(type, type === 'WRITE' ? `${path}\0${value}` : `${path}\0`, transactionId);
  if (type === 'DIRECTORY') return reply.split('\0').filter(Boolean).toSorted().join(' ');
  return reply === 'OK\0' ? 'OK' : reply;
}

/** Whether the operation changes a node, be it to the same value. */
const isChange = (model: Model, { type, path }: Operation) =>
  type === 'WRITE' || (type === 'MKDIR' && !model.has(path)) || (type === 'RM' && model.has(path));

test('what committed is equal to a serial order, in every answer and in the outcome', () => {
  const step = fc.record({
    client: fc.nat({ max: 2 }), what: fc.constantFrom('operate', 'operate', 'operate', 'commit', 'abort', 'outside'),
    operation,
  });
  let committed = 0;
  let conflicts = 0;
  fc.assert(fc.property(fc.array(step, { minLength: 10, maxLength: 60, size: 'max' }), (steps) => {
    const store = new Store();
    const clients = [0, 1, 2].map(() => new TestClient(store, { domainId: 0, privileged: true }));
    const open = clients.map(() => ({ id: 0, log: [] as [Operation, string][], start: new Map() as Model }));
    const model: Model = new Map([['', '']]);
    for (const { client: index, what, operation: one } of steps) {
      const client = clients[index]!;
      const transaction = open[index]!;
      if (what === 'outside') {
        assert.equal(storeAnswer(client, one, 0), modelAnswer(model, one));
      } else if (what === 'operate') {
        if (transaction.id === 0) Object.assign(transaction, { id: client.begin(), log: [], start: new Map(model) });
        transaction.log.push([one, storeAnswer(client, one, transaction.id)]);
      } else if (transaction.id !== 0) {
        const { id, log, start } = transaction;
        transaction.id = 0;
        const verdict = client.ask('TRANSACTION_END', what === 'commit' ? 'T\0' : 'F\0', id);
        if (what === 'abort' || verdict === 'EAGAIN') {
          // Even so, all that it saw was the store at its start with its own changes.
          for (const [done, answered] of log) assert.equal(answered, modelAnswer(start, done));
          if (what === 'commit') conflicts++;
          continue;
        }
        assert.equal(verdict, 'OK\0');
        committed++;
        // Its place in the order is its commit; if it changed nothing, its start.
        const changed = log.some(([done]) => isChange(start, done));
        for (const [done, answered] of log) assert.equal(answered, modelAnswer(changed ? model : start, done));
      }
    }
    for (const [path, value] of model) if (path !== '') assert.equal(store.read(path), value);
    assert.equal(store.dump('/')!.length, model.size);
    assert.deepEqual(store.audit(), []);
  }), { numRuns: 600 });
  // On average 1400 commits and 450 conflicts.
  assert.ok(committed > 200 && conflicts > 50, 'the histories are worth checking');
});

test('watch events come for exactly what changed, and none for what was dropped', () => {
  fc.assert(fc.property(fc.array(operation, { maxLength: 20 }), fc.boolean(), (ops, commit) => {
    const store = new Store();
    const client = new TestClient(store, { domainId: 0, privileged: true });
    const seen: string[] = [];
    store.watch('/', (path) => seen.push(path));
    seen.length = 0;
    const tx = client.begin();
    const model: Model = new Map([['', '']]);
    const expected: string[] = [];
    for (const one of ops) {
      if (isChange(model, one)) expected.push(one.path);
      const answered = modelAnswer(model, one);
      assert.equal(storeAnswer(client, one, tx), answered);
    }
    assert.deepEqual(seen, []);
    client.ask('TRANSACTION_END', commit ? 'T\0' : 'F\0', tx);
    assert.deepEqual(seen, commit ? expected : []);
  }), { numRuns: 100 });
});

// -- Permissions -------------------------------------------------------------------------------------------------

test('a domain may do what its entry says, its owner everything', () => {
  const permission = fc.record({ domainId: fc.integer({ min: 1, max: 4 }), access: fc.nat({ max: 3 }) });
  fc.assert(fc.property(
    fc.array(permission, { minLength: 1, maxLength: 5 }), fc.integer({ min: 1, max: 4 }), (permissions, domainId) => {
      const store = new Store();
      store.write('/n', 'v');
      store.setPerms('/n', permissions.map((one) => `${'nrwb'[one.access]}${one.domainId}`));
      const client = new TestClient(store, { domainId });
      const entry = permissions.slice(1).find((one) => one.domainId === domainId) ?? permissions[0]!;
      const access = permissions[0]!.domainId === domainId ? 3 : entry.access;
      assert.equal(accessOf({ domainId, privileged: false, targetId: undefined }, permissions), access);
      assert.equal(client.ask('READ', '/n\0'), access & 1 ? 'v' : 'EACCES');
      assert.equal(client.ask('WRITE', '/n\0w'), access & 2 ? 'OK\0' : 'EACCES');
      assert.equal(client.ask('RM', '/n\0'), access & 2 ? 'OK\0' : 'EACCES');
      assert.deepEqual(store.audit(), []);
    }), { numRuns: 200 });
});

// -- Hostile bytes -------------------------------------------------------------------------------------------------

const payloadPart = fc.oneof(
  fc.constantFrom('a', 'a/b', '/local/domain/5/a', '/', '/local/domain/6/x', '@releaseDomain', '', 'T', 'F', '5', '0'),
  fc.constantFrom('n5', 'r6', 'b5', 'w0', 'token', 'x'.repeat(300), '4294967295', '-1', 'nodes', 'check'),
  fc.string({ unit: 'binary-ascii', maxLength: 8 }),
);
const frame = fc.record({
  type: fc.oneof(fc.integer({ min: 0, max: 30 }), fc.nat({ max: 0xffffffff })),
  transactionId: fc.oneof(fc.integer({ min: 0, max: 4 }), fc.nat()),
  parts: fc.array(payloadPart, { maxLength: 5 }),
  closed: fc.boolean(),
  flip: fc.option(fc.nat({ max: 200 }), { freq: 10 }),
});

test('no bytes make the store throw, nor let a guest past its quotas', () => {
  const quota = { nodes: 20, watches: 6, transactions: 3 };
  fc.assert(fc.property(fc.array(frame, { maxLength: 60 }), fc.boolean(), (frames, privileged) => {
    const store = new Store({ quota });
    homes(store, 5, 6);
    const client = new TestClient(store, { domainId: privileged ? 0 : 5, privileged });
    for (const { type, transactionId, parts, closed, flip } of frames) {
      const payload = stringToBytes(parts.join('\0') + (closed ? '\0' : ''));
      const bytes = message(type, 1, transactionId, payload);
      if (flip !== null) bytes[flip % bytes.length]! ^= 1 << (flip % 8);
      client.connection.receive(bytes);
      if (client.connection.state === 'broken') client.connection.reset();
    }
    client.take();
    assert.deepEqual(store.audit(), []);
    if (privileged) return;
    assert.ok(store.ownedNodes(5) <= quota.nodes);
    assert.ok(client.connection.saveState().watches.length <= quota.watches);
    assert.ok(client.connection.saveState().transactionIds.length <= quota.transactions);
  }), { numRuns: 300 });
});

test('a message cut, doubled or spoilt anywhere is answered or ends the connection, never more', () => {
  const good = message(XS_TYPE.WRITE, 7, 0, stringToBytes('a/b\0value'));
  fc.assert(fc.property(fc.nat({ max: good.length - 1 }), fc.nat({ max: 255 }), (position, value) => {
    const store = new Store();
    homes(store, 5);
    const client = new TestClient(store, { domainId: 5 });
    const bytes = good.slice();
    bytes[position] = value;
    client.connection.receive(bytes);
    if (client.connection.state === 'broken') return;
    const length = new DataView(bytes.buffer).getUint32(XSD_SOCKMSG.at.len, true);
    const replies = client.take();
    assert.equal(replies.length, length + XSD_SOCKMSG.sizeBytes > bytes.length ? 0 : 1);
  }), { numRuns: 200 });
});
