// the picture: an image, what lies over it, and the place that was clicked on
import { cmapper, MULTIPLANAR_TYPE, Niivue, NVImage, NVMesh, SHOW_RENDER, SLICE_TYPE } from '@niivue/niivue'
import { colourOf } from './colours'
import { Drawing } from './drawing'
import type { Header, Point } from './server'

/** The crosshair; `label` is the id of what lies there, of answers with labels. */
export interface Place { mm: number[]; vox: number[]; value: number; label: number }

const MESH_COLOUR = new Uint8Array([255, 170, 40, 255])
const ASIDE = 0.3 // brightness of what isn't chosen, beside what is
const DRAWN = [93, 255, 143] // the colour of what is drawn
const DRAWN_OPACITY = 0.4
const OVERLAY = WebGL2RenderingContext.TEXTURE2 // where overlays are kept
const MOST_COLOURS = 8000 // that fit into a row of a texture anywhere

const LOOK = {
  backColor: [0, 0, 0, 1] as [number, number, number, number],
  crosshairWidth: 0.45, // a pixel at least, in a quarter of a small screen, too
  crosshairWidthUnit: 'percent' as const,
  crosshairGap: 2,
  show3Dcrosshair: true,
  meshXRay: 0.3,
  meshThicknessOn2D: 1,
  isColorbar: false,
  showLegend: false,
  loadingText: '',
  dragAndDropEnabled: false,
  multiplanarLayout: MULTIPLANAR_TYPE.GRID,
  multiplanarShowRender: SHOW_RENDER.ALWAYS,
}

const place = ([x, y, z]: number[]) => ({ x, y, z })

const ACROSS = [SLICE_TYPE.SAGITTAL, SLICE_TYPE.CORONAL, SLICE_TYPE.AXIAL] // by the axis of the world that they cut

/** The slice that all of an image of rank 2 lies in. */
function plane({ affine }: Header): SLICE_TYPE {
  const [[a, d], [b, e], [c, f]] = affine
  const normal = [b * f - c * e, c * d - a * f, a * e - b * d].map(Math.abs)
  return ACROSS[normal.indexOf(Math.max(...normal))]
}

/** A slice of the picture, and where places in mm are in it: pixels, and how many voxels away from the slice. */
export interface Tile { left: number; top: number; width: number; height: number; axis: number; at(mm: number[]): { x: number; y: number; away: number } }

const RIGHT_UP = [[0, 1], [0, 2], [1, 2]] // axes to the right and up, of axial, coronal and sagittal slices
const ALONG = [2, 1, 0] // and the one that they are cut across

/** Says when it has drawn; the keys are the page's. */
class Picture extends Niivue {
  onDrawn: () => void = () => undefined
  override drawScene(): string | void {
    const said = super.drawScene()
    this.onDrawn()
    return said
  }
  override keyDownListener(): void {}
  override keyUpListener(): void {}
}

export class Scene {
  readonly nv = new Picture(LOOK)
  private over: Niivue | null = null // what lies over the picture and is cut by the swipe
  private turned = false // the image doesn't say how it lies, so that its rows run down, as in a picture
  private flat: SLICE_TYPE | null = null
  private wanted = ''
  private showing: Promise<void> = Promise.resolve()
  place: Place | null = null
  private overlays: NVImage[] = []
  private meshes: NVMesh[] = []
  private opaque = 0.5
  private marks: NVMesh | null = null
  private labels: { image: NVImage; url: string; name: string } | null = null

  constructor(onPlace: (place: Place) => void, onDrawn: () => void) {
    this.nv.onDrawn = onDrawn
    this.nv.onLocationChange = (found) => {
      const { mm, vox, values } = found as { mm: number[]; vox: number[]; values: { value: number }[] }
      const label = this.labels ? (values[this.nv.volumes.indexOf(this.labels.image)]?.value ?? 0) : 0
      this.place = { mm: this.turn(Array.from(mm).slice(0, 3)), vox: Array.from(vox).slice(0, 3), value: values[0]?.value ?? NaN, label: Math.round(label) }
      onPlace(this.place)
    }
  }

  async attach(canvas: HTMLCanvasElement): Promise<void> {
    await this.nv.attachToCanvas(canvas)
    this.slices(SLICE_TYPE.MULTIPLANAR)
  }

  /** Show an image; of several that are asked for before the first is there, the last. */
  async show(url: string, header: Header): Promise<void> {
    this.wanted = url
    this.showing = this.showing.catch(() => undefined).then(() => (this.wanted === url ? this.load(url, header) : undefined))
    await this.showing
  }

  private async load(url: string, header: Header): Promise<void> {
    const { name, oriented, shown } = header
    this.clear()
    this.drawsNot()
    this.turned = !oriented
    this.nv.opts.isOrientationTextVisible = oriented
    const flat = shown.length < 3 ? plane(header) : null
    if (flat !== this.flat) this.slices(flat ?? SLICE_TYPE.MULTIPLANAR)
    this.flat = flat
    await this.nv.loadVolumes([{ url, name: `${name}.nii`, colormap: 'gray' }])
    this.nv.createOnLocationChange()
  }

  /** Places as the picture has them from those of the image, and back. */
  private turn(mm: number[]): number[] {
    return this.turned ? [mm[0], 0 - mm[1], 0 - mm[2]] : mm
  }

  /** Whether a graphics card draws; without one a large image takes minutes. */
  get isFast(): boolean {
    const told = this.nv.gl.getExtension('WEBGL_debug_renderer_info')
    const name = String(this.nv.gl.getParameter(told?.UNMASKED_RENDERER_WEBGL ?? this.nv.gl.RENDERER))
    return !/swiftshader|llvmpipe|softpipe|software|basic render/i.test(name)
  }

  /** How many images there are one after the other, of several channels or times. */
  get frames(): number {
    return this.nv.volumes[0]?.nFrame4D ?? 1
  }

  set frame(number: number) {
    const image = this.nv.volumes[0]
    if (image) this.nv.setFrame4D(image.id, number)
    this.nv.createOnLocationChange()
  }

  slices(type: SLICE_TYPE): void {
    this.nv.setSliceType(type)
    this.over?.setSliceType(type)
  }

  get sliceType(): SLICE_TYPE {
    return this.nv.opts.sliceType
  }

  /** An image over the picture, seen from the same place, in the same window; or black to white around 0 if `around`. */
  async cover(canvas: HTMLCanvasElement, url: string, name: string, around: boolean): Promise<void> {
    if (!this.over) {
      this.over = new Niivue(LOOK)
      await this.over.attachToCanvas(canvas)
    }
    const [cal_min, cal_max] = this.window
    await this.over.loadVolumes([{ url, name: `${name}.nii`, colormap: 'gray', cal_min, cal_max }])
    const image = this.over.volumes[0]
    const most = Math.max(Math.abs(image.robust_min ?? 0), Math.abs(image.robust_max ?? 0)) || 1
    if (around) [image.cal_min, image.cal_max] = [-most, most]
    this.over.updateGLVolume()
    this.over.setSliceType(this.sliceType)
    this.nv.broadcastTo([this.over], { '2d': true, '3d': true })
    this.nv.sync()
  }

  /** End of that. */
  uncover(): void {
    this.nv.broadcastTo([])
    for (const image of [...(this.over?.volumes ?? [])]) this.over?.removeVolume(image)
  }

  get window(): [number, number] {
    const image = this.nv.volumes[0]
    return [image?.cal_min ?? 0, image?.cal_max ?? 1]
  }

  set window([low, high]: [number, number]) {
    const image = this.nv.volumes[0]
    if (!image) return
    for (const [one, shown] of [[this.nv, image], [this.over, this.over?.volumes[0]]] as const) {
      if (!one || !shown) continue
      shown.cal_min = low
      shown.cal_max = high
      one.updateGLVolume()
    }
  }

  /** The numbers of the image as they are stored; times `slope`, and `start` more, they are its values. */
  stored(): { stored: ArrayLike<number>; slope: number; start: number } {
    const image = this.nv.volumes[0]
    const [all, count] = [image?.img ?? new Float32Array(), image?.nVox3D ?? 0]
    return { stored: all.subarray(0, count) as ArrayLike<number>, slope: image?.hdr?.scl_slope || 1, start: image?.hdr?.scl_inter || 0 }
  }

  draw(): void {
    this.nv.drawScene()
    if (this.over?.volumes.length) this.over.drawScene()
  }

  reset(): void {
    const image = this.nv.volumes[0]
    if (image) this.window = [image.robust_min ?? 0, image.robust_max ?? 1]
  }

  async overlay(url: string, name: string, labels: boolean, opacity: number): Promise<void> {
    const colormap = labels ? 'random' : 'warm'
    this.opaque = opacity
    const image = await this.nv.addVolumeFromUrl({ url, name: `${name}.nii`, colormap, opacity })
    this.overlays.push(image)
    if (labels) this.labels = { image, url, name }
  }

  /** Fetch the labels again after a change. */
  async replaceLabels(): Promise<void> {
    if (!this.labels) return
    const { image, url, name } = this.labels
    const opacity = image.opacity
    this.overlays = this.overlays.filter((one) => one !== image)
    this.labels = null
    this.nv.removeVolume(image)
    await this.overlay(url, name, true, opacity)
    this.nv.createOnLocationChange()
  }

  /** Colours for the ids up to `most`; beside those that are chosen the others are dark. */
  label(most: number, chosen: number[]): void {
    if (!this.labels || most < 1) return
    const { image } = this.labels
    if (most > MOST_COLOURS) {
      image.cal_min = 0
      image.cal_max = most
    } else {
      const ids = Array.from({ length: most + 1 }, (_, id) => id)
      const lit = new Set(chosen)
      const colours = ids.map((id) => colourOf(id).map((part) => (!lit.size || lit.has(id) ? part : Math.round(ASIDE * part))))
      const [R, G, B] = [0, 1, 2].map((part) => colours.map((colour) => colour[part]))
      image.setColormapLabel({ R, G, B, A: ids.map((id) => (id ? 255 : 0)), I: ids })
    }
    this.nv.updateGLVolume()
  }

  set opacity(value: number) {
    this.opaque = value
    for (const overlay of this.overlays) this.nv.setOpacity(this.nv.volumes.indexOf(overlay), value)
  }

  async mesh(url: string, name: string): Promise<void> {
    this.meshes.push(await this.nv.addMeshFromUrl({ url, name, rgba255: MESH_COLOUR }))
  }

  /** Show one mesh of several; the labels with it, where they are its own. */
  onlyMesh(name: string, labels: boolean): void {
    for (const mesh of this.meshes) mesh.visible = mesh.name === name
    for (const overlay of this.overlays) overlay.opacity = labels ? this.opaque : 0
    this.nv.updateGLVolume()
  }

  /** Points as small balls; the chosen one in another colour. */
  points(points: Point[], chosen: number | null): void {
    if (this.marks) this.nv.removeMesh(this.marks)
    this.marks = null
    const nodes = points.flatMap(({ name, position }, index) =>
      position ? [{ name, ...place(this.turn(position)), colorValue: index === chosen ? 2 : 1, sizeValue: 1 }] : [])
    if (nodes.length) {
      const size = 0.01 * Math.max(...this.extent())
      this.marks = this.nv.loadConnectomeAsMesh({
        name: 'points', nodeColormap: 'warm', nodeColormapNegative: 'winter', nodeMinColor: 0, nodeMaxColor: 2,
        nodeScale: size, edgeColormap: 'warm', edgeColormapNegative: 'winter', edgeMin: 0, edgeMax: 1, edgeScale: 1,
        nodes, edges: [],
      })
      this.nv.addMesh(this.marks)
    }
    this.nv.drawScene()
  }

  /** The place under a point of the canvas, in mm; null beside the slices. */
  at(x: number, y: number): number[] | null {
    const ratio = this.nv.uiData.dpr ?? 1
    const frac = this.nv.canvasPos2frac([ratio * x, ratio * y])
    return frac[0] < 0 ? null : this.turn(Array.from(this.nv.frac2mm(frac, 0, true)).slice(0, 3))
  }

  /** The voxel of the picture under a point of the canvas in a slice, its centre at whole numbers; the nearest beside it. */
  voxelAt(x: number, y: number, { left, top, width, height }: Tile): number[] {
    const ratio = this.nv.uiData.dpr ?? 1
    const within = (one: number, from: number, length: number) => Math.min(Math.max(one, from + 0.01), from + length - 0.01)
    const frac = this.nv.canvasPos2frac([ratio * within(x, left, width), ratio * within(y, top, height)])
    return this.dims.map((size, axis) => frac[axis] * size - 0.5)
  }

  /** The voxel of the picture at a place in mm. */
  voxelOf(mm: number[]): number[] {
    const { x, y, z } = place(this.turn(mm))
    const frac = this.nv.mm2frac([x, y, z], 0, true)
    return this.dims.map((size, axis) => frac[axis] * size - 0.5)
  }

  /** The voxel of the picture that the crosshair is in. */
  get voxel(): number[] {
    return Array.from(this.nv.frac2vox(this.nv.scene.crosshairPos)).slice(0, 3)
  }

  /** The place of a voxel of the picture, in mm. */
  placeOf(voxel: number[]): number[] {
    const [x, y, z] = voxel.map((one, axis) => (one + 0.5) / this.dims[axis])
    return this.turn(Array.from(this.nv.frac2mm([x, y, z], 0, true)).slice(0, 3))
  }

  /** Voxels of the picture to the right, to the front and up. */
  get dims(): number[] {
    return this.nv.volumes[0]?.dimsRAS?.slice(1, 4) ?? [1, 1, 1]
  }

  /** mm per voxel of the picture along these axes. */
  get steps(): number[] {
    return this.nv.volumes[0]?.pixDimsRAS?.slice(1, 4).map((one) => Math.abs(one) || 1) ?? [1, 1, 1]
  }

  /** Begin to draw over the image, in place of what was drawn; `changed` is told whenever there is more or less of it. */
  draws(rank: number, changed: () => void): Drawing | null {
    const image = this.nv.volumes[0]
    if (!image?.img2RASstart || !image.img2RASstep || !image.hdr) return null
    this.nv.drawLut = cmapper.makeDrawLut({ R: [0, DRAWN[0]], G: [0, DRAWN[1]], B: [0, DRAWN[2]], A: [0, 255], I: [0, 1], labels: ['', 'drawn'] })
    this.nv.createEmptyDrawing()
    this.nv.setDrawOpacity(DRAWN_OPACITY)
    this.nv.updateGLVolume() // which takes the colours
    this.nv.clickToSegmentGrowingBitmap = null // as large again, and of no use here
    if (!this.nv.drawBitmap) return null
    const size = image.hdr.dims.slice(1, 1 + rank).reverse()
    const grid = { dims: this.dims, start: image.img2RASstart, step: image.img2RASstep, size }
    return new Drawing(grid, this.nv.drawBitmap, () => {
      this.nv.refreshDrawing(true)
      changed()
    })
  }

  /** Draw no longer. */
  drawsNot(): void {
    if (this.nv.drawBitmap) this.nv.closeDrawing()
  }

  /** The slices that are seen. */
  tiles(): Tile[] {
    const [ratio, dims] = [this.nv.uiData.dpr ?? 1, this.nv.volumes[0]?.dimsRAS]
    if (!dims) return []
    return this.nv.screenSlices.filter(({ axCorSag }) => axCorSag <= SLICE_TYPE.SAGITTAL).map(({ axCorSag, leftTopWidthHeight, leftTopMM, fovMM }) => {
      const [axis, [right, up]] = [ALONG[axCorSag], RIGHT_UP[axCorSag]]
      const [left, top, width, height] = leftTopWidthHeight.map((one) => one / ratio) // a mirrored slice has a negative width
      const at = (mm: number[]) => {
        const { x, y, z } = place(this.turn(mm))
        const frac = this.nv.mm2frac([x, y, z], 0, true)
        const flat = this.nv.frac2mm(frac) // the slices lie straight, however the volume is tilted
        return {
          x: left + ((flat[right] - leftTopMM[0]) / fovMM[0]) * width,
          y: top + (1 - (flat[up] - leftTopMM[1]) / fovMM[1]) * height,
          away: Math.abs(frac[axis] - this.nv.scene.crosshairPos[axis]) * dims[axis + 1],
        }
      }
      return { left: Math.min(left, left + width), top, width: Math.abs(width), height, axis, at }
    })
  }

  /** Move the crosshair by voxels to the right, to the front and up. */
  step(by: [number, number, number]): void {
    if (this.nv.volumes.length) this.nv.moveCrosshairInVox(...by)
  }

  go(mm: number[]): void {
    const { x, y, z } = place(this.turn(mm))
    this.nv.scene.crosshairPos = this.nv.mm2frac([x, y, z], 0, true) // true: of tilted volumes, too
    this.nv.createOnLocationChange()
    this.nv.drawScene()
  }

  clear(): void {
    for (const overlay of this.overlays) this.nv.removeVolume(overlay)
    // what was an overlay would be seen in the volume again as soon as something is drawn
    if (this.overlays.length) this.nv.overlayTexture = this.nv.rgbaTex(this.nv.overlayTexture, OVERLAY, [2, 2, 2, 2], true)
    for (const mesh of this.meshes) this.nv.removeMesh(mesh)
    if (this.marks) this.nv.removeMesh(this.marks)
    this.overlays = []
    this.meshes = []
    this.marks = null
    this.labels = null
  }

  private extent(): number[] {
    const dims = this.nv.volumes[0]?.hdr?.dims ?? [3, 100, 100, 100]
    const pix = this.nv.volumes[0]?.hdr?.pixDims ?? [1, 1, 1, 1]
    return [1, 2, 3].map((axis) => dims[axis] * pix[axis])
  }
}
