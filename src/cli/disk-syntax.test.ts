import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseDisk } from './disk-syntax.ts';

test('disks as xl writes them', () => {
  const table = {
    'web.img': { path: '/here/web.img' },
    '/web.img,raw,xvda,rw': { path: '/web.img', format: 'raw', target: 'xvda' },
    '/web.img, raw, xvdb, ro': { path: '/web.img', format: 'raw', target: 'xvdb', readOnly: true },
    '/web.img,,xvda': { path: '/web.img', target: 'xvda' },
    'format=layer, vdev=xvdc, access=w, target=web.layer': { path: '/here/web.layer', format: 'layer', target: 'xvdc' },
    '/dev/vg/guest,raw,hda,r,discard': { path: '/dev/vg/guest', format: 'raw', target: 'hda', readOnly: true },
    'web.img,raw,xvda,rw,no-discard': { path: '/here/web.img', format: 'raw', target: 'xvda', discard: false },
    'web.img,bytes-per-second=10MiB,requests-per-second=200,persistent-grants': {
      path: '/here/web.img', bytesPerSecond: 10 * 2 ** 20, requestsPerSecond: 200, persistentGrants: true,
    },
  };
  for (const [text, spec] of Object.entries(table)) assert.deepEqual(parseDisk(text, '/here'), spec, text);
  for (const text of ['', ',raw', 'a,requests-per-second=0', 'a,requests-per-second=many', 'a,qcow2,xvda', 'a,raw,xvda,x', 'a,raw,xvda,rw,more', 'a,script=block-drbd', 'a,devtype=cdrom']) {
    assert.throws(() => parseDisk(text, '/'), { code: 'ZAZEN_DISK_SPEC' }, text);
  }
  assert.throws(() => parseDisk('a,bytes-per-second=fast', '/'), { code: 'ZAZEN_SPEC_SIZE' });
});
