// The toolstack's calls: the same store as on the wire, and what only the toolstack has.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Store } from './store.ts';
import { homes, TestClient } from './test-wire-client.ts';

test('reading, writing, listing', () => {
  const store = new Store();
  assert.equal(store.read('/a'), undefined);
  assert.equal(store.list('/a'), undefined);
  assert.equal(store.getPerms('/a'), undefined);
  assert.equal(store.exists('/a'), false);
  store.write('/a/b', 'grün');
  assert.equal(store.read('/a/b'), 'grün');
  assert.equal(store.read('/a'), '');
  assert.equal(store.exists('/a'), true);
  assert.deepEqual(store.readBytes('/a/b'), new TextEncoder().encode('grün'));
  store.mkdir('/a/c');
  assert.deepEqual(store.list('/a'), ['b', 'c']);
  store.rm('/a/b');
  store.rm('/a/b');
  store.rm('/never/was');
  assert.deepEqual(store.list('/a'), ['c']);
  store.write('relative', '0');
  assert.equal(store.read('/local/domain/0/relative'), '0');
});

test('what the caller keeps is not what the store keeps', () => {
  const store = new Store();
  const bytes = Uint8Array.of(1, 2, 3);
  store.write('/a', bytes);
  bytes[0] = 9;
  store.readBytes('/a')![1] = 9;
  assert.deepEqual(store.readBytes('/a'), Uint8Array.of(1, 2, 3));
});

test('mistakes are operator errors', () => {
  const store = new Store();
  assert.throws(() => store.write('no good', ''), { code: 'ZAZEN_STORE_EINVAL' });
  assert.throws(() => store.rm('/'), { code: 'ZAZEN_STORE_EINVAL' });
  assert.throws(() => store.setPerms('/none', ['n0']), { code: 'ZAZEN_STORE_ENOENT' });
  assert.throws(() => store.setPerms('/', ['z0']), { code: 'ZAZEN_STORE_EINVAL' });
  assert.throws(() => store.watch('//', () => {}), { code: 'ZAZEN_STORE_EINVAL' });
});

test('a watch calls at first, then for every change, until it is ended', () => {
  const store = new Store();
  const seen: string[] = [];
  const end = store.watch('/a', (path) => seen.push(path));
  assert.deepEqual(seen, ['/a']);
  store.write('/a/b', '1');
  store.write('/c', '1');
  end();
  end();
  store.write('/a/b', '2');
  assert.deepEqual(seen, ['/a', '/a/b']);
});

test('a callback finds the change done, and may change the store itself', () => {
  const store = new Store();
  homes(store, 5);
  const seen: string[] = [];
  store.watch('/local/domain/5/state', () => {
    const state = store.read('/local/domain/5/state');
    seen.push(`state ${state}`);
    if (state === '3') store.write('/back/state', '4');
  });
  store.watch('/back/state', () => seen.push(`back ${store.read('/back/state')}`));
  const client = new TestClient(store, { domainId: 5 });
  client.ask('WRITE', 'state\x003');
  assert.deepEqual(seen, ['state undefined', 'back undefined', 'state 3', 'back 4']);
});

test('a transaction is seen whole or not at all', () => {
  const store = new Store();
  const seen: string[] = [];
  store.watch('/', (path) => seen.push(`${path} ${store.list('/t')}`));
  seen.length = 0;
  const result = store.transaction((view) => {
    view.write('/t/a', '1');
    view.write('/t/b', '2');
    assert.equal(view.read('/t/a'), '1');
    assert.equal(store.read('/t/a'), undefined);
    return 7;
  });
  assert.equal(result, 7);
  assert.deepEqual(seen, ['/t/a a,b', '/t/b a,b']);
  assert.throws(() => store.transaction((view) => {
    view.rm('/t');
    throw new RangeError('changed my mind');
  }), RangeError);
  assert.deepEqual(store.list('/t'), ['a', 'b']);
});

test('a domain that is gone leaves nothing: nodes, permissions, target', () => {
  const store = new Store();
  homes(store, 5, 6);
  store.write('/backend/5', 'v');
  store.setPerms('/backend/5', ['n0', 'r5', 'w6']);
  const client = new TestClient(store, { domainId: 5 });
  client.ask('WRITE', 'device/vif/0/state\x001');
  const six = new TestClient(store, { domainId: 6 });
  six.ask('SET_PERMS', '/local/domain/6\0n6\0b5\0');
  client.ask('WRITE', '/local/domain/6/from5\0v');
  assert.equal(store.ownedNodes(5), 6);
  client.connection.close();
  store.domainReleased(5);
  assert.equal(store.exists('/local/domain/5'), false);
  assert.equal(store.exists('/local/domain/6/from5'), false);
  assert.deepEqual(store.getPerms('/backend/5'), ['n0', 'w6']);
  assert.deepEqual(store.getPerms('/local/domain/6'), ['n6']);
  assert.equal(store.ownedNodes(5), 0);
  assert.equal(store.isIntroduced(5), false);
  assert.deepEqual(store.audit(), []);
});

test('a part of the tree is dumped and put back under another domain', () => {
  const store = new Store();
  homes(store, 5);
  const client = new TestClient(store, { domainId: 5 });
  client.ask('WRITE', 'data/x\0\x00\xff');
  client.ask('SET_PERMS', 'data/x\0n5\0r7\0');
  const dump = JSON.parse(JSON.stringify(store.dump('/local/domain/5')));
  store.write('/local/domain/9/old', '');
  store.restoreSnapshot('/local/domain/9', store.snapshotOf(dump)!, { domainIds: new Map([[5, 9]]) });
  assert.equal(store.exists('/local/domain/9/old'), false);
  assert.deepEqual(store.readBytes('/local/domain/9/data/x'), Uint8Array.of(0, 255));
  assert.deepEqual(store.getPerms('/local/domain/9/data/x'), ['n9', 'r7']);
  assert.deepEqual(store.getPerms('/local/domain/5/data/x'), ['n5', 'r7']);
  assert.equal(store.dump('/none'), undefined);
  assert.deepEqual(store.audit(), []);
});

test('a dump takes the place of all that was there', () => {
  const store = new Store();
  store.write('/a/b', '1');
  const [all, part] = [store.dump('/')!, store.dump('/a')!];
  store.write('/a/c', '2');
  store.write('/d', '3');
  store.restoreSnapshot('/a', store.snapshotOf(part)!);
  assert.deepEqual(store.list('/a'), ['b']);
  store.restoreSnapshot('/', store.snapshotOf(all)!);
  assert.deepEqual(store.dump('/'), all);
  store.mkdir('/new');
  store.restoreSnapshot('/new/place', store.snapshotOf(part)!);
  assert.equal(store.read('/new/place/b'), '1');
  assert.deepEqual(store.audit(), []);
});

test('a snapshot is made of a dump beside the tree, of which nobody hears', () => {
  const store = new Store();
  homes(store, 5);
  store.write('/local/domain/5/data/x', 'value');
  store.setPerms('/local/domain/5/data/x', ['n5', 'r7']);
  const dump = store.dump('/local/domain/5')!;
  const all = store.dump('/');
  const heard: string[] = [];
  store.watch('/', (path) => heard.push(path));
  heard.length = 0;
  const owned = store.ownedNodes(5);
  const snapshot = store.snapshotOf(dump)!;
  assert.deepEqual([heard, store.dump('/'), store.ownedNodes(5)], [[], all, owned]);
  store.rm('/local/domain/5');
  store.restoreSnapshot('/local/domain/5', snapshot);
  assert.deepEqual(store.dump('/local/domain/5'), dump);
  assert.equal(store.snapshotOf([]), undefined);
  assert.deepEqual(store.audit(), []);
});

test('a dump that is none changes nothing', () => {
  const store = new Store();
  store.write('/a', 'kept');
  const bad = [
    [{ path: '', value: 'x', permissions: ['n0'] }, { path: 'b//c', value: '', permissions: ['n0'] }],
    [{ path: '', value: 'x', permissions: [] }],
    [{ path: '', value: 'x', permissions: [7 as unknown as string] }],
    [{ path: '', permissions: ['n0'] } as never],
    [null as never],
    [{ path: '', value: '\u{100}', permissions: ['n0'] }],
  ];
  const one = (path: string) => ({ path, value: '', permissions: ['n0'] });
  const unordered = [[one('b')], [one(''), one('b/c'), one('b')], [one(''), one('b'), one('b')], [one(''), one('')]];
  for (const dump of [...bad, ...unordered, 'nonsense', null, {}]) {
    assert.throws(() => store.snapshotOf(dump as never), { code: 'ZAZEN_STORE_EINVAL' });
  }
  assert.equal(store.read('/a'), 'kept');
});

test('what was set for a domain is saved with it', () => {
  const store = new Store();
  store.setQuota(5, { nodes: 3 });
  store.domainIntroduced(5);
  store.domainShutdown(5);
  const state = JSON.parse(JSON.stringify(store.saveDomain(5)));
  const other = new Store();
  other.restoreDomain(8, state);
  other.domainIntroduced(8);
  assert.equal(other.quota(8).nodes, 3);
  assert.equal(other.quota(8).watches, 128);
  assert.deepEqual(other.saveDomain(8), state);
  assert.ok(other.isDomainUnchanged(8, state));
  for (const change of [{ features: 0 }, { shutdown: false }, { quota: {} }, { quota: { nodes: 4 } },
    { quota: { nodes: 3, watches: 1 } }]) {
    assert.ok(!other.isDomainUnchanged(8, { ...state, ...change }), JSON.stringify(change));
  }
  const bad: object[] = [
    { features: 64 }, { quota: { toString: 1 } }, { quota: null }, { quota: { nodes: -1 } }, { shutdown: 1 },
  ];
  for (const fault of bad) {
    assert.throws(() => other.restoreDomain(9, { ...state, ...fault }), { code: 'ZAZEN_STORE_EINVAL' });
  }
});

test('a thousand domains and a deep tree are no matter', () => {
  const store = new Store();
  let events = 0;
  for (let id = 1; id <= 1000; id++) {
    homes(store, id);
    store.watch(`/local/domain/${id}/device`, () => events++);
  }
  events = 0;
  for (let id = 1; id <= 1000; id++) {
    store.transaction((view) => {
      for (let i = 0; i < 5; i++) view.write(`/local/domain/${id}/device/vbd/${i}/state`, '1');
    });
  }
  assert.equal(events, 5000);
  const deep = `/local/domain/1${'/d'.repeat(1000)}`;
  store.write(deep, 'v');
  assert.equal(store.dump('/local/domain/1')!.length, 1013);
  for (let id = 1; id <= 1000; id++) store.domainReleased(id);
  assert.deepEqual(store.dump('/')!.map(({ path }) => path), ['', 'local', 'local/domain']);
  assert.deepEqual(store.stats(), { nodes: 3, watches: 1000, domains: 1 });
  assert.deepEqual(store.audit(), []);
});
