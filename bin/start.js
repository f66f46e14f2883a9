// `npm start`.

import { launch } from './launcher.js';

launch('cli/start', process.argv.slice(2), true);
