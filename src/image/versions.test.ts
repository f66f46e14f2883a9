// Files of older versions stay readable: here is one of each version, and what is in it, written once and never again.

import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { gunzipSync } from 'node:zlib';
import { openImage } from './image.ts';
import { makeFolder, makeMachine, readBack } from './test-images.ts';

const folder = makeFolder();

/** Gzip, base64. */
const VERSION_1 = (
  'H4sIAAAAAAACA+3cTWsTQRzH8f+m0dT60FifrVoYPDaYxIQ0ATGlpFIxrfQgshRhkx0hmKbQ5tRSvHoSvHvyTQh9NfUVeNJTC7Kb/3RTCqUgva'
  + 'Tfz+W3EzYzs5uZgVnIfm68WUx5njhp+SlJSaQuJ9VlTlJH559yoojsp4+XXTFqIxMdZE80Nci8llxmBQAAAACAC8+f9xvLS81Xntsrvz2+q3b7'
  + '8F9r7YO1w+3v5uWf188+/NjjzgEAAAAAMPp8AAAAAAAw8ngCAgAAAADA6LskIl+8wf/xF1ZWG2f5jndOfXH1uncLjGmmh/oauayZ0RzXvKI5oX'
  + 'lV85rmdc0bmpOa7tUCNzWnNG9p3ta8o3lX857mfc0Hmg81pzUfaT7WfKI5I0cdqA9fnzd0vdnU4H643yaDC80bmh9ujLv58a4ZjZKl5cUVkfkX'
  + 'hYlonrTj8eT7frBteyKyYzqhqRlb/lgu2Uo1VwirlVypHBRz1VJxLpdvtVst+9y2gnLRzJr2pg36Nmx2ut3OlqkVKvnErAk31oNOz9R2TC9Yt6'
  + 'ZmNrqh2d2N5+dC3M+k3a1+0Lf/szakxuJ6vXhdSOpN63owHh8nnz/99P7r39Vvv1nhAQAAgMQ/4ZUl9gBQAAA='
);

const VERSION_2 = (
  'H4sIAAAAAAACA+3cTWsTQRzH8f9uUxPrU3yuz3Xw2EC2qTQsKCkllYJpSw5S9rbd3UIwTcHGi6HoUS+CCL4Vz559CV58B94UT5Vs/pNNWhBBvMTv'
  + '5/LbWXZmHzIzMAvZl/XHq67jiJWTj5KVRGpyXE2qMjU8/jcHisjX3HjZFvvnyPc3isdONciylmwWj9SbG9YryKvDQylqPbt/brweAAAAAACTIFgO'
  + '6utrjUeuXfNujq+q7Trcf/5z8+GbHx+as71Pd798fs+TAwAAAABg8gUAAAAAAGDi8QYEAAAAAIDJNy0ir53B/+pXNpr1P6nj/KNrse26mke/MTCt'
  + 'eUIzr1nQPKk5o3lK87TmGc2zmuc07ScCzmte0LyoeUnzsuYVzauas5rXNK9r3tC8qXlL87bmHRleQG30/pyR+y26g+dhf5s8/mvOyPiwfdyOjyeN'
  + 'fi9ZW1/dEFl+4M30x0mU9qcgCMIXSUdEeqYVG98seAuV0It2Sl4Ub5cWlyrVUrW8UyltR2HZi8Pk/mKYmHkTPUvCbhI3Wu12a9/43lI5M2/ivd2w'
  + '1TF+z3TC3cT4Zq8dm4ODdHyupNeZnXe/G3aTv5kb3Km0XSedF7J2czofFNLtbP+9p1tvvzfffWOGBwAAADK/AG9/xEwAUAAA'
);

const VERSION_3 = (
  'H4sIAAAAAAACA+3cS2sTURjG8XdyaWK9xXu9l4PLBpImZmxASCmpFk1buqgyK4fMFIJpAjYrQ9GdrgT3LvRL6Efws7hyJ+4qmbwnk7QuBHFh+v9tnjmT'
  + 'OWcumTMwZ+C8qj9eTTiOWCn5InFJpCZH1eSeJEfbq035rZ+pybItDvaRGSzkjuxqmAUt2cwdqjc/qpeV1wcHktN6dv38ZD0AAAAAAKaBt+zV19caD5L2'
  + 'nffZ5Hu5fQ//8O3jpzdztf7nzUdfg4fdJ1w5AAAAAACmnwcAAAAAAKYeIyAAAAAAAPD9HwAAAAAA/P/SIvLWGc6rt7KxVf+TMQPnH41F2HYTmofnGExr'
  + 'zmhmNLOaJzRnNU9qntI8rXlG86ymnSLwnOZ5zQuaFzUvaV7WvKI5p3lV85rmdc0bmjc1b2neltEB1MbPzxk731xieD3sf5PBseaM9Q97j9v+sd0Y3CVr'
  + '66sbIsv3i7ODftKM7ifP8/yXYUdE+qYVmKoJC8VKIVzcyZfKrpsvL+24+aVmZTFfKgflSulu0w3cwCyY5ovQ74VBo9Vut/ZMtegWYgsm6O76rY6p9k3H'
  + '3w1N1XTbgdnfj/rnSnSc8X73en4v/JtnQyIZtetEz4W43ZQ+D7LRcrz+zvOn735svf8+o9ukx35zJMXALwAAAI6lXxJb0fkAYAAA'
);

async function readOld(version: number, contents: string): Promise<void> {
  const path = join(folder, `version-${version}.core`);
  writeFileSync(path, gunzipSync(Buffer.from(contents, 'base64')));
  await using image = await openImage(path);
  assert.deepEqual([image.version, image.header.createdMillis, image.header.domain], [version, 1.7e12, { name: 'old' }]);
  assert.deepEqual(image.banks, [{ guestAddress: 0x4000_0000, sizeBytes: 3 * 4096 }]);
  assert.deepEqual(image.section('state'), Uint8Array.of(1, 2, 3));
  assert.deepEqual(image.vmcoreinfo, new TextEncoder().encode('A=1\n'));
  assert.deepEqual(image.vcpus, [{
    x: Array.from({ length: 31 }, (_, n) => BigInt(n)), sp: 31n, pc: 0x4000_1000n, pstate: 5n,
    fp: { v: new Uint8Array(512).fill(7), fpsr: 1, fpcr: 2 },
  }]);
  assert.deepEqual([0, 1, 2].map((k) => image.pageState(0x40000 + k)), ['zero', 'stored', 'zero']);
  const pages = await readBack(image, makeMachine(65536), 4, 0x40000, 3);
  assert.ok(pages.equals(Buffer.concat([Buffer.alloc(4096), Buffer.alloc(4096, 0x5a), Buffer.alloc(4096)])));
  assert.equal((await image.verify()).problemCount, 0);
  assert.deepEqual([...image.hotGfns], version < 3 ? [] : [0x40001]);
  assert.deepEqual(image.kernelWindow, version === 1 ? undefined
    : { virtualAddress: 0xffff_8000_0800_0000n, guestAddress: 0x4000_1000, sizeBytes: 8192 });
}

test('version 1', () => readOld(1, VERSION_1));
test('version 2: the window to the kernel', () => readOld(2, VERSION_2));
test('version 3: hot pages', () => readOld(3, VERSION_3));
