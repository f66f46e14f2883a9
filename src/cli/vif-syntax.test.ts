import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseVif } from './vif-syntax.ts';

test('cards as xl writes them', () => {
  assert.deepEqual(parseVif(''), {});
  assert.deepEqual(parseVif('mac=00:16:3e:01:02:03, bridge=private'), { mac: '00:16:3e:01:02:03', network: 'private' });
  assert.deepEqual(parseVif('type=vif,script=vif-bridge,ip=10.0.2.20'), { address: '10.0.2.20' });
  assert.deepEqual(parseVif('forward=8080:80,forward=0.0.0.0:53:53/udp'), { forwards: ['8080:80', '0.0.0.0:53:53/udp'] });
  assert.equal(parseVif('rate=10MB/s').rateBytesPerSecond, 10e6);
  assert.equal(parseVif('rate=8Kb/s@50ms').rateBytesPerSecond, 1000);
});

test('cards that are none', () => {
  for (const text of ['bridge', 'mac=', 'speed=3', 'rate=fast', 'rate=0B/s', '=x']) {
    assert.throws(() => parseVif(text), { code: 'ZAZEN_NIC_SPEC' }, text);
  }
  assert.throws(() => parseVif('forward=80'), { code: 'ZAZEN_USAGE' });
});
