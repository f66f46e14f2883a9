import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Store } from './store.ts';

const seed = Number(process.env['ZAZEN_TEST_SEED'] ?? 1);
const name = fc.constantFrom('a', 'b', 'c');
const path = fc.array(name, { minLength: 1, maxLength: 4 }).map((names) => `/top/${names.join('/')}`);
const change = fc.oneof(
  fc.record({ type: fc.constant('write' as const), path, value: fc.constantFrom('', '1', 'two') }),
  fc.record({ type: fc.constant('rm' as const), path, value: fc.constant('') }),
  fc.record({ type: fc.constant('perms' as const), path, value: fc.constantFrom('n5', 'r0', 'b7') }),
);

function apply(store: Store, changes: readonly { type: 'write' | 'rm' | 'perms'; path: string; value: string }[]): void {
  for (const { type, path: at, value } of changes) {
    if (type === 'write') store.write(at, value);
    else if (type === 'rm') store.rm(at);
    else if (store.exists(at)) store.setPerms(at, [value, 'r5']);
  }
}
const sorted = (store: Store, at: string) => store.dump(at)!.toSorted((a, b) => (a.path < b.path ? -1 : 1));

test('a snapshot is what was, whatever comes, and putting it back undoes everything', () => {
  fc.assert(fc.property(fc.array(change), fc.array(change), (before, after) => {
    const store = new Store();
    store.write('/top', '');
    apply(store, before);
    const wanted = sorted(store, '/top');
    const snapshot = store.snapshot('/top')!;
    assert(store.isUnchanged('/top', snapshot));
    apply(store, after);
    store.restoreSnapshot('/top', snapshot);
    assert.deepEqual(sorted(store, '/top'), wanted);
    assert.deepEqual(store.audit(), []);
    // Elsewhere, as a fork's: under another number.
    store.restoreSnapshot('/copy', snapshot, { domainIds: new Map([[5, 9]]) });
    const renumbered = wanted.map((node) =>
      ({ ...node, permissions: node.permissions.map((one) => one.replace('5', '9')) }));
    assert.deepEqual(sorted(store, '/copy'), renumbered);
    store.write('/copy/a', 'new');
    assert.deepEqual(sorted(store, '/top'), wanted);
    assert.deepEqual(store.audit(), []);
  }), { seed, numRuns: 200 });
});

test('watches hear of what is changed by putting a snapshot back, and of nothing else', () => {
  const store = new Store();
  store.write('/top/same', '1');
  store.write('/top/other', '1');
  store.write('/top/gone/deep', '1');
  const snapshot = store.snapshot('/top')!;
  store.write('/top/other', '2');
  store.rm('/top/gone');
  const heard: string[] = [];
  for (const at of ['/top', '/top/gone/deep', '/top/same']) store.watch(at, (changed) => heard.push(`${at}: ${changed}`));
  heard.length = 0;
  store.restoreSnapshot('/top', snapshot);
  assert.deepEqual(heard.toSorted(), ['/top/gone/deep: /top/gone/deep', '/top: /top/gone', '/top: /top/other']);
  store.restoreSnapshot('/top', snapshot);
  assert.equal(heard.length, 3);
  assert.throws(() => store.restoreSnapshot('/none/below', snapshot), { code: 'ZAZEN_STORE_ENOENT' });
});
