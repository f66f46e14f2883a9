import assert from 'node:assert/strict';
import { test } from 'node:test';
import { cacheFolder, compileCacheFolder, regionStoreFolder } from './cache-folder.ts';

test('the place of the cache', () => {
  assert.equal(cacheFolder({ ZAZEN_CACHE_DIR: '/a/b', XDG_CACHE_HOME: '/c' }), '/a/b');
  assert.equal(cacheFolder({ XDG_CACHE_HOME: '/c' }), '/c/zazen');
  assert.match(cacheFolder({}), /\/\.cache\/zazen$/);
});

test('compiled code is kept there as well, unless Node was told otherwise', () => {
  assert.equal(compileCacheFolder({ XDG_CACHE_HOME: '/c' }), '/c/zazen/node');
  assert.equal(compileCacheFolder({ XDG_CACHE_HOME: '/c', NODE_COMPILE_CACHE: '/d' }), '/d');
});

test('and compiled regions of guests, unless they are to be kept elsewhere or nowhere', () => {
  assert.equal(regionStoreFolder({ XDG_CACHE_HOME: '/c' }), '/c/zazen/regions');
  assert.equal(regionStoreFolder({ XDG_CACHE_HOME: '/c', ZAZEN_REGION_STORE: '/d' }), '/d');
  assert.equal(regionStoreFolder({ XDG_CACHE_HOME: '/c', ZAZEN_REGION_STORE: 'off' }), undefined);
});
