// the page: a list of images, the picture, what can be asked, and the answer
import { SLICE_TYPE } from '@niivue/niivue'
import { app, attempt, element, lengths, make, say, unit } from './app'
import { addInstance, clickInstance, forgetInstances, instanceKey, prepareInstances, showInstances } from './instances'
import { checkCases, findings, listCases, listed, showsCases } from './cases'
import { compare, prepareComparison } from './compare'
import { flip, prepareHypotheses, showHypotheses } from './hypotheses'
import { prepareLearning, showLearning } from './learn'
import { drawMarks } from './marks'
import { forgetMask, forgetMasks, prepareMasks } from './masks'
import { forgetMeasures, isMeasuring, measureTo, prepareMeasuring, setMeasuring } from './measure'
import { forgetDrawing, isDrawn, isPen, penKey, preparePen, setPen, showPen } from './pen'
import { savePicture } from './picture'
import { dragPoint, dropPoint, forgetPoint, grabPoint, preparePoints, showPoints } from './points'
import { addClick, followDrawing, forgetClicks, isPrompted, promptOptions, removeClick, removeClickHere, showClicks } from './prompt'
import { Scene } from './scene'
import { type Answer, type Header, type Job, type Option, server } from './server'
import { prepareTheme } from './theme'
import { offerWindows, prepareWindows } from './windows'

const VIEWS: Record<string, SLICE_TYPE> = {
  All: SLICE_TYPE.MULTIPLANAR, Axial: SLICE_TYPE.AXIAL, Coronal: SLICE_TYPE.CORONAL, Sagittal: SLICE_TYPE.SAGITTAL, '3-D': SLICE_TYPE.RENDER,
}
const MOVES: Record<string, [number, number, number]> = {
  ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0], PageUp: [0, 0, 1], PageDown: [0, 0, -1],
}
const STILL = 4 // pixels that a click may move
const REACH = 10 // pixels from a point that a drag may begin at

let job: number | null = null

async function open(id: number): Promise<void> {
  app.current = id
  forgetMeasures()
  forgetPoint()
  forgetInstances()
  const known = findings(id)
  say(known.join('; '), known.length > 0)
  listCases()
  const header = await server.header(id)
  if (id !== app.current) return // another one was opened meanwhile
  app.header = header
  await app.scene.show(server.image(id, header), header)
  if (id !== app.current) return
  showFrames()
  showHeader(header)
  offerWindows()
  forgetDrawing()
  forgetMasks()
  forgetClicks()
  await show(app.answer)
  if (header.finer && app.scene.isFast) void attempt(refine)()
}

/** What the image is, and how much of it is shown. */
function showHeader(header: Header): void {
  const level = header.shown.join(' x ')
  const coarse = level === header.shape.slice(1).join(' x ') ? '' : `, shown at ${level}`
  const thinned = coarse + (header.every.some((step) => step > 1) ? `, every ${header.every.join(' x ')} voxels shown` : '')
  const channels = header.shape[0] > 1 ? `${header.shape[0]} x ` : ''
  const spacing = header.spacing.map((step) => Number((unit() === 'mm' ? step : 1000 * step).toPrecision(3))).join(' x ')
  element('header').textContent = `${header.format}, ${channels}${header.shape.slice(1).join(' x ')}, ${spacing} ${unit()}${thinned}`
  element('finer').hidden = !header.finer
}

/** A large pyramid as fine as all other images, at the same place and in the same window. */
async function refine(): Promise<void> {
  if (isDrawn()) throw new Error('Clear what is drawn first: it is of these voxels')
  const [id, mm, window] = [app.current, app.scene.place?.mm, app.scene.window]
  const header = await server.refine(id)
  if (id !== app.current) return
  app.header = header
  await app.scene.show(server.image(id, header), header)
  if (id !== app.current) return
  showFrames()
  showHeader(header)
  app.scene.window = window
  if (mm) app.scene.go(mm)
  forgetDrawing()
  forgetMasks()
  await show(app.answer)
}

/** A slider over channels or times, of images that have several. */
function showFrames(): void {
  const slider = element<HTMLInputElement>('frame')
  element('frames').hidden = app.scene.frames < 2
  slider.max = String(app.scene.frames - 1)
  slider.value = '0'
  slider.oninput = () => {
    app.scene.frame = Number(slider.value)
    element('frameValue').textContent = `${Number(slider.value) + 1} of ${app.scene.frames}`
  }
  element('frameValue').textContent = `1 of ${app.scene.frames}`
}

/** What the model can be asked, once it is loaded. */
function showModel(): void {
  const { task, needed, loading } = app.state
  element('model').hidden = task === null && !loading
  element('task').textContent = task ?? ''
  element('loading').hidden = !loading
  element('order').hidden = !task
  element('predictAll').hidden = needed !== null
  for (const id of ['predict', 'predictAll']) element<HTMLButtonElement>(id).disabled = loading
  showAdapters()
  const options = app.state.options.filter(({ name }) => name !== 'click')
  element('options').replaceChildren(...options.map(optionField))
  element('more').hidden = !options.length
  element<HTMLDetailsElement>('more').open = options.some(({ choices }) => choices.length > 0)
  showClicks()
  showDrawing()
  showLearning()
}

/** The pen, where something can be made of what is drawn: a prompt or an instance. */
function showDrawing(): void {
  const [prompted, instances] = [app.state ? isPrompted() : false, !!app.answer?.instances]
  element('pen').hidden = !prompted && !instances
  element(instances ? 'hint' : 'clickList').after(element('pen'))
  const flat = app.header?.shown.length === 2
  element('keysIn').hidden = flat
  element('penHint').textContent = instances ? `Draw an instance${flat ? '' : ', in as many slices as it has'}, then add it. Voxels of other instances stay theirs.`
    : 'Draw around the organ, in one slice or several: what is drawn is asked with.'
  element('drawnTools').hidden = !instances
  element<HTMLButtonElement>('addInstance').disabled = !isDrawn()
  if (prompted) followDrawing()
  showPen()
}

/** Which adapter answers, of a model that has any. */
function showAdapters(): void {
  const { adapters, adapter } = app.state
  const select = element<HTMLSelectElement>('adapter')
  element('adapters').hidden = !adapters.length
  select.replaceChildren(new Option('none', ''), ...adapters.map(({ name }) => new Option(name)))
  select.value = adapter ?? ''
  select.title = adapters.find(({ name }) => name === adapter)?.folder ?? 'the base alone'
}

/** Have another adapter answer from now on, after what is being predicted. */
async function chooseAdapter(): Promise<void> {
  const name = element<HTMLSelectElement>('adapter').value
  await busy(async () => {
    const { job } = await server.adapter(name || null)
    const done = await server.switched(job, () => undefined)
    if (done.answer) Object.assign(app.state, done.answer)
    say(done.message, done.state === 'failed')
  })
  showModel()
}

async function load(): Promise<void> {
  try {
    Object.assign(app.state, await server.model(), { loading: false })
    showModel()
  } catch (error) {
    element('loading').textContent = (error as Error).message
    element('loading').classList.add('fault')
  }
}

function optionField({ name, type, help, choices }: Option): HTMLElement {
  if (choices.length) {
    const select = make('select', { name }, ...choices.map(({ value, name: called }) => new Option(called, value)))
    return make('label', {}, name, select, make('small', { textContent: help }))
  }
  const input = make('input', { name, type: type === 'str' ? 'text' : 'number', step: type === 'int' ? '1' : 'any' })
  return make('label', {}, name, input, make('small', { textContent: help }))
}

function askedFor(): Record<string, unknown> {
  const options: Record<string, unknown> = {}
  for (const input of element('options').querySelectorAll<HTMLInputElement | HTMLSelectElement>('input, select')) {
    const option = app.state.options.find(({ name }) => name === input.name)
    if (input.value !== '') options[input.name] = option?.repeated ? [input.value] : input.value
  }
  if (isPrompted()) Object.assign(options, promptOptions('plane' in options))
  return options
}

async function predict(): Promise<void> {
  const asked = askedFor()
  await busy(() => predictOne(app.current, asked))
}

/** Every image that has no answer yet, one after the other, until Cancel. */
async function predictAll(): Promise<void> {
  const asked = askedFor()
  await busy(async () => {
    for (const { id } of app.state.cases) {
      if (!(id in app.state.answers) && !(await predictOne(id, asked))) return
    }
  })
}

/** Whether there is an answer to go on after. */
async function predictOne(id: number, asked: Record<string, unknown>): Promise<boolean> {
  job = (await server.predict(id, asked)).job
  const done = await finished(job)
  if (done.answer) app.state.answers[id] = done.answer
  say(done.state === 'done' ? '' : done.message || done.state, done.state === 'failed')
  if (done.answer && id === app.current) await show(done.answer)
  listCases()
  return done.state !== 'cancelled'
}

async function busy(work: () => Promise<unknown>): Promise<void> {
  const tools = (on: boolean) => {
    element('cancel').hidden = !on
    element('progress').hidden = !on
    for (const id of ['predict', 'predictAll', 'adapter']) element<HTMLButtonElement>(id).disabled = on
  }
  tools(true)
  try {
    await work()
  } finally {
    job = null
    tools(false)
  }
}

async function finished(number: number): Promise<Job> {
  const bar = element<HTMLProgressElement>('progress')
  return server.job(number, ({ done, total }) => {
    if (total) {
      bar.max = total
      bar.value = done
    } else bar.removeAttribute('value')
  })
}

async function show(answer: Answer | null): Promise<void> {
  await compare(null, 0)
  showLearning()
  showDrawing()
  element('answer').hidden = !answer
  element('saved').textContent = ''
  if (!answer) return
  showSummary(answer)
  showPoints(answer.points)
  element('files').replaceChildren(...answer.files.map(({ name }) => make('li', { textContent: name })))
  const shown = shownFiles(answer)
  const made = shown.find(({ kind }) => kind === 'image')
  if (made) await compare(made.name, opacity())
  for (const { name, kind } of shown) {
    if (kind === 'mesh') await app.scene.mesh(server.file(app.current, name), name)
    else if (kind === 'labels') await app.scene.overlay(server.file(app.current, name), name, true, opacity())
  }
  showHypotheses(answer)
  showInstances()
}

/** Meshes and label maps; the image that was made, where there is neither. */
function shownFiles(answer: Answer) {
  const solid = answer.files.filter(({ kind }) => kind === 'mesh' || kind === 'labels')
  return solid.length || answer.points.length ? solid : answer.files.filter(({ kind }) => kind === 'image').slice(0, 1)
}

const opacity = () => Number(element<HTMLInputElement>('opacity').value)

function showSummary(answer: Answer): void {
  const by: Record<string, string> = answer.adapter ? { adapter: answer.adapter } : app.state.adapters.length ? { adapter: 'none' } : {}
  const parts = Object.entries({ ...by, ...answer.summary }).flatMap(([name, value]) => [
    make('dt', { textContent: name.replaceAll('_', ' ') }),
    make('dd', { textContent: typeof value === 'number' ? String(Number(value.toPrecision(4))) : value }),
  ])
  element('summary').replaceChildren(...parts)
}

async function save(): Promise<void> {
  const { folder, files } = await server.save(app.current, element<HTMLSelectElement>('format').value)
  element('saved').textContent = `${files.length} files in ${folder}`
}

async function clicked(event: MouseEvent): Promise<void> {
  if (isMeasuring()) {
    if (app.scene.at(event.offsetX, event.offsetY) && app.scene.place) measureTo(app.scene.place.mm)
  } else if (app.answer?.instances) await clickInstance(event.shiftKey)
  else if (isPrompted() && event.altKey) removeClick(event.offsetX, event.offsetY)
  else if (isPrompted() && event.shiftKey) addClick(event.offsetX, event.offsetY)
}

function prepare(): void {
  prepareWindows()
  prepareTheme()
  prepareMeasuring(() => setPen(false))
  preparePen(() => {
    forgetMask()
    showDrawing()
  })
  prepareMasks()
  prepareHypotheses()
  preparePoints()
  for (const [name, type] of Object.entries(VIEWS)) {
    element('slices').append(make('button', { textContent: name, onclick: () => app.scene.slices(type) }))
  }
  element('finer').onclick = attempt(refine)
  element('picture').onclick = attempt(savePicture)
  element('opacity').oninput = () => { app.scene.opacity = opacity() }
  element('search').oninput = listCases
  element('order').onchange = listCases
  element('check').onclick = attempt(checkCases)
  showsCases((id) => attempt(() => open(id))())
  element('predict').onclick = attempt(predict)
  element('adapter').onchange = attempt(chooseAdapter)
  element('predictAll').onclick = attempt(predictAll)
  element('cancel').onclick = attempt(async () => { if (job !== null) await server.cancel(job) })
  element('save').onclick = attempt(save)
  prepareInstances()
  prepareComparison(opacity)
  prepareLearning(listCases)
  document.addEventListener('keydown', pressed)
}

function prepareMouse(): void {
  let from: [number, number] | null = null
  const view = element('view')
  const at = (event: MouseEvent) => app.scene.at(event.offsetX, event.offsetY)
  const moved = (event: MouseEvent) => from !== null && Math.hypot(event.offsetX - from[0], event.offsetY - from[1]) >= STILL
  view.addEventListener('mousedown', (event) => {
    from = [event.offsetX, event.offsetY]
    const [place, beside] = [at(event), app.scene.at(event.offsetX + REACH, event.offsetY)]
    if (event.button === 0 && !event.shiftKey && !isMeasuring() && place && beside) grabPoint(place, Math.hypot(...place.map((one, axis) => one - beside[axis])))
  })
  view.addEventListener('mousemove', (event) => {
    const place = at(event)
    if (place && moved(event)) dragPoint(place)
  })
  view.addEventListener('mouseup', (event) => {
    const far = moved(event)
    from = null
    attempt(() => dropPoint(far))()
    if (!far) attempt(() => clicked(event))()
  })
}

function pressed(event: KeyboardEvent): void {
  if (['INPUT', 'SELECT'].includes((event.target as HTMLElement).tagName) || event.ctrlKey || event.metaKey || event.altKey) return
  if (isPen() && penKey(event)) return event.preventDefault()
  const move = event.target === element('view') ? MOVES[event.key] : undefined
  if (move) {
    app.scene.step(move)
    event.preventDefault()
  } else if (event.key === 'p' && !element('pen').hidden) setPen(!isPen())
  else if (event.key === 'Enter' && app.answer?.instances && isDrawn() && (event.target as HTMLElement).tagName !== 'BUTTON') attempt(addInstance)()
  else if (event.key === 'd') setMeasuring(!isMeasuring())
  else if (event.key === 'Escape' && isMeasuring()) setMeasuring(false)
  else if (event.key === 'Enter' && isMeasuring() && app.scene.place && (event.target as HTMLElement).tagName !== 'BUTTON') measureTo(app.scene.place.mm)
  else if (event.key === 'Enter' && app.state.task && (event.target as HTMLElement).tagName !== 'BUTTON') attempt(predict)()
  else if (event.key === 'j' || event.key === 'k') attempt(() => step(event.key === 'j' ? 1 : -1))()
  else if (event.key === 's' && app.answer) attempt(save)()
  else if (event.key === ',' || event.key === '.') flip(event.key === '.' ? 1 : -1)
  else if (event.key === 'Delete' && isPrompted()) removeClickHere()
  else instanceKey(event)
}

async function step(by: number): Promise<void> {
  const order = listed()
  const next = order[order.indexOf(app.current) + by]
  if (next !== undefined) await open(next)
}

async function start(): Promise<void> {
  app.scene = new Scene(({ mm, vox, value }) => {
    const index = vox.map((one) => one.toFixed(0)).join(', ')
    element('place').textContent = `${lengths(mm)} ${unit()}   [${index}]   ${Number(value.toPrecision(6))}`
  }, drawMarks)
  app.state = await server.state()
  history.replaceState(null, '', location.pathname) // the token isn't shown any longer
  prepare()
  showModel()
  await app.scene.attach(element<HTMLCanvasElement>('view'))
  prepareMouse() // after the picture's own listeners, so that the crosshair is where the mouse is
  if (app.state.cases.length) await open(app.state.cases[0].id)
  document.body.dataset.ready = 'true'
  if (app.state.loading) await load()
}

attempt(start)()
