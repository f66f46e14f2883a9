import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Store } from '../xenstore/store.ts';
import { writeDomainEntries } from './store-entries.ts';
import { suspendPort, watchesForSuspend } from './suspend.ts';

const ID = 7;
const PORT = `/local/domain/${ID}/device/suspend/event-channel`;
const FEATURE = `/local/domain/${ID}/control/feature-suspend`;

function newStore(): Store {
  const store = new Store();
  writeDomainEntries(store, { domainId: ID, name: 'a', uuid: 'u', memoryBytes: 2 ** 20, vcpus: 1 });
  return store;
}

test('a guest that has just been made offers nothing', () => {
  const store = newStore();
  assert.equal(suspendPort(store, ID), undefined);
  assert.equal(watchesForSuspend(store, ID), false);
  store.rm(`/local/domain/${ID}`);
  assert.equal(suspendPort(store, ID), undefined);
  assert.equal(watchesForSuspend(store, ID), false);
});

test('what it advertises counts if it is a number that a port can have', () => {
  const store = newStore();
  const port = (text: string): number | undefined => {
    store.write(PORT, text);
    return suspendPort(store, ID);
  };
  for (const [text, wanted] of [['3', 3], ['07', 7], ['4294967295', 2 ** 32 - 1], ['4294967296', undefined],
    ['0', undefined], ['-3', undefined], ['3.0', undefined], ['0x3', undefined], ['3\0', undefined], [' 3', undefined],
    ['3\n', undefined], ['33333333333', undefined]] as const) assert.equal(port(text), wanted, JSON.stringify(text));
  fc.assert(fc.property(fc.string({ unit: 'binary-ascii', maxLength: 12 }), text => {
    const found = port(text);
    assert.ok(found === undefined || (/^\d+$/.test(text) && Number(text) === found && found > 0 && found < 2 ** 32));
  }));
  for (const [text, wanted] of [['1', true], ['', false], ['0', false], ['yes', false]] as const) {
    store.write(FEATURE, text);
    assert.equal(watchesForSuspend(store, ID), wanted);
  }
});
